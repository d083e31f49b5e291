"""Quantized layers at inference, and the selection of their kernels."""
