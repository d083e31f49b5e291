"""The report as one HTML page that needs nothing else: no network, no server, no other file.

`page` and `overview` gather what a page shows, `scores` and `tables` turn numbers into
tables, `plots` and `svg` draw, `gallery` shows the changed answers, `render` writes the file; what
it looks like is in `templates/`.
"""

from .overview import comparison_page
from .page import report_page

__all__ = ["comparison_page", "report_page"]
