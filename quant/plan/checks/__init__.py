"""Checks of what a recipe asks of single layers."""
