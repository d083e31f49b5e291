"""Family tables: one module per model type, its row is in `families.py`."""
