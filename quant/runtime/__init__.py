"""Quantized layers at inference, and the choice of their kernels."""
