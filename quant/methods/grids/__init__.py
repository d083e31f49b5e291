"""Rounding to the levels of a grid: uniform integers, and tables of any levels."""
