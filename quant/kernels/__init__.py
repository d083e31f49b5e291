"""Kernels for linear layers with quantized weights; `reference` is the specification."""
