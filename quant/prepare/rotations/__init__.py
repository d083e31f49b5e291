"""Rotations of the residual stream and of attention values, folded into the weights."""
