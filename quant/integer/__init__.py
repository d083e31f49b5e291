"""Integer-arithmetic-only inference of static W8A8 layers, and its comparison with the kernels."""
