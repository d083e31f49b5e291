"""Drawn scenes and questions: the built-in benchmark and calibration data."""
