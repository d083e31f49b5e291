"""Shared by all packages: atomic files, journals, lazy tensors, distributed ranks."""
