"""Names of the parts of a model that bytes are counted by; without torch, for tables of results."""

REST = "rest"
BYTE_PARTS = ("decoder", "tower", "embedding", "head", REST)
"""All parts, in the order of tables. A decoder or tower has its norms, convolution and positions;
the rest is the final norm, and tensors that the model does not compute with."""
