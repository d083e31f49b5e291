"""Speculative decoding of one prompt: drafts that the model checks several at a time."""
