"""Before an evaluation: checks that need no torch, and estimates of its time."""
