"""Kinds of parameters that are trained over the whole model."""
