"""The plan of every linear layer, with memory and time estimates."""
