"""What flows through a model: calibration samples, observers, the walk from block to block."""
