"""Calibration: samples, activation statistics, blockwise execution."""
