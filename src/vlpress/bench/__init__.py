"""Speed of kernels and models."""
