"""Reports: JSON, Markdown and HTML."""
