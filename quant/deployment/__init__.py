"""Export of checkpoints to the file formats of other runtimes, without rounding anything again."""
