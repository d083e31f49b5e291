"""Paired statistics: intervals, tests, clusters, chance level, verdicts."""
