"""The quant/kernels room."""
