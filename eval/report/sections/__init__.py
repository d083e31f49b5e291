"""Sections of a report that are measured beside the scores."""
