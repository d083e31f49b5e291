"""The plan: what happens to every linear layer, with memory and time estimates."""
