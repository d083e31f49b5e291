"""Lossless, entropy-coded containers of safetensors files."""
