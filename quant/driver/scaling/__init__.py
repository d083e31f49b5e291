"""Scaling of channels before quantization: SmoothQuant and AWQ on the blocks of a model."""
