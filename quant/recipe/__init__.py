"""Recipes: schemes, steps and presets."""
