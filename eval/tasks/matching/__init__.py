"""Comparison of an answer with the accepted ones, for single benchmarks; see also `extract`."""
