"""`python -m vlpress`, the same command line as `vlpress`."""

from .cli.main import main

main()
