"""The report as one self-contained HTML page: no network, no server, no other file.

`page` and `overview` collect the content of a page, with tables from `..tables`; `plots` and `svg`
draw figures, `gallery` builds the cards of flips, `render` fills the `templates/`.
"""

from .overview import comparison_page
from .page import report_page

__all__ = ["comparison_page", "report_page"]
