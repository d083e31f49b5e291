"""The quant/formats room."""
