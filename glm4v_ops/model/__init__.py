"""Pixels to words."""
