"""Preparation of a user's own questions."""
