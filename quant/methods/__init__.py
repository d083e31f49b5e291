"""Quantization methods as pure functions of tensors."""
