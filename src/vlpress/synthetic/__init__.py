"""Synthetic scenes and questions: the data of the built-in benchmarks and calibration."""
