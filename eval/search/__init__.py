"""The verb `search`: a recipe under a budget."""
