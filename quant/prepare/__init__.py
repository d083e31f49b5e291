"""Whole-model changes of a float checkpoint before it is quantized, from folder to folder."""
