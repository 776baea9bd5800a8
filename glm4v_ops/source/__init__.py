"""Bytes in: which objects a day holds, their bytes, and safe pixels out of them."""
