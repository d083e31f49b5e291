"""Rows of the tables of accuracy: settings (grid), methods, and scopes (layers), by family."""
