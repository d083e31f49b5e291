"""Paired evaluation of a model at several numbers of visual tokens per image."""
