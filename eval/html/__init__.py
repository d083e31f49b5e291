"""The report as one HTML page that needs nothing else: no network, no server, no other file.

`page` gathers what a page shows, `scores` and `tables` turn numbers into tables, `plots` and `svg`
draw, `gallery` shows the changed answers; what it looks like is in `templates/`.
"""

from .page import comparison_page, report_page

__all__ = ["comparison_page", "report_page"]
