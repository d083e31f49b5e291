"""Sentences that all forms of a report share."""
