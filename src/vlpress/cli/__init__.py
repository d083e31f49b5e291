"""The command line: parses options, calls the Python API, prints results."""
