"""Search of bits and grids under a budget."""
