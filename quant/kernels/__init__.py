"""Products with quantized weights; `reference` is the specification."""
