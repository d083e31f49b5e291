"""Putting questions to local and served models, and storing the answers."""
