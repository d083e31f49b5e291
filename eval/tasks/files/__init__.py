"""Benchmark files: TSV, JSONL, `datasets`, and the images in them."""
