"""Modules of Qwen-VL of 2023: tower, resampler, decoder."""
