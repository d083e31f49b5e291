"""The eval room."""
