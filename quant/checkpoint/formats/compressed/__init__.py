"""Parts of the compressed-tensors format: its config, and the layers of each kind of grid."""
