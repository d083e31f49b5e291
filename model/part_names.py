"""Names of the parts of a model that bytes are counted by; without torch, for tables of results."""

REST = "rest"
BYTE_PARTS = ("decoder", "tower", "embedding", "head", "mtp", REST)
"""All parts, in the order of tables. A decoder or tower has its norms, convolution and positions;
`mtp` is the module for multi-token prediction; the rest is the final norm, and other tensors that
the model does not compute with. Records of versions before `mtp` have no entry for it."""


def byte_part(part: str) -> str:
    """Return the name in `BYTE_PARTS` of a part of a family's table."""
    return part if part in BYTE_PARTS else REST
