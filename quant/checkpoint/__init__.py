"""Saving, loading, exporting and verifying quantized checkpoints."""
