"""How quantized weights lie on disk: one module per checkpoint format."""
