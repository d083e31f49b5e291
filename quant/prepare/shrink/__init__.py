"""Preparation shrink: remove inner channels of MLPs, or decoder layers."""
