"""Drivers that run the methods on a model, in memory or block by block."""
