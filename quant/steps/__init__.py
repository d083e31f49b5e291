"""Steps of a recipe: every quantization method and every transform is one class and a table row."""
