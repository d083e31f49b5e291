"""The calib room."""
