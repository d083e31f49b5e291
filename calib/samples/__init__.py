"""Calibration samples: sources, records and selection."""
