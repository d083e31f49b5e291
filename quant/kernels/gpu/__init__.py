"""Linear layers with quantized weights on a GPU: prepacked weights and Triton kernels."""
