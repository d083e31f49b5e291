"""Vocabulary pruning: fewer tokens, and so fewer rows of the embedding and of the output head."""
