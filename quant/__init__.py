"""Quantization: schemes, methods, recipes, plans, drivers, checkpoint formats, kernels."""
