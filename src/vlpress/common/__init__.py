"""Shared by all packages: atomic files, checksums, lazy tensors, distributed processes."""
