"""The tables of a report, defined once for HTML, Markdown and the console."""
