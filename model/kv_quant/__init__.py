"""Quantization of keys and values, as quantized KV caches of engines do it."""
