"""Checkpoints as a folder of safetensors shards with config.json and side files."""
