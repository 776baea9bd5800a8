"""Rows out: the tables, and the answers already known."""
