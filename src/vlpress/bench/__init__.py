"""Benchmarks of kernels and models, and the CPU load during a measurement."""
