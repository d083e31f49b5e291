"""``python -m vlpress``: the same command line as ``vlpress``."""

from .cli import main

main()
