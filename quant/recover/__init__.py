"""Recovery of quantized models by training few of their parameters."""
