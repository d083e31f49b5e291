"""Checkpoint formats of compressed weights: one module each, and their table."""
