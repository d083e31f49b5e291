"""Answers of local and served models: batches, responders, stored predictions, throughput."""
