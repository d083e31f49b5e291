"""Renders a page as one HTML document.

The templates escape all text, including answers of models and contents of benchmark files. A
content security policy also forbids the page to load anything or to run any script but its own.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .... import __version__

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Figure:
    """A plot with its caption."""

    svg: Markup
    caption: str


def render(template: str, **view: Any) -> str:
    """Fill a template.

    Args:
        template: file name below `templates/`.
        view: the template's variables.

    Raises:
        jinja2.UndefinedError: a variable of the template is missing in `view`.
    """
    script = (TEMPLATES / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template(template)
        .render(
            style=Markup((TEMPLATES / "page.css").read_text("utf-8")),
            script=Markup(script),
            script_digest=digest,
            version=__version__,
            **view,
        )
    )


@functools.cache
def _environment() -> Environment:
    """The templates' environment; it keeps the compiled templates for further pages."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
