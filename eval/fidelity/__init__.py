"""Divergence from a reference model: teacher forcing, KL, perplexity, noise."""
