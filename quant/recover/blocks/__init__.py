"""Training of a block on its own, while the samples are in front of it."""
