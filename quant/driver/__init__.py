"""Drivers that run the methods over a model, in memory or block by block."""
