"""The installed Chromium, for tests of HTML pages; nothing is downloaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium_path() -> str | None:
    """Path of the browser; None if none is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def launch(path: str | None) -> Iterator[Any]:
    """Start a headless browser, and close it after the `with` block."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium refuses to run as root, as containers do, with its sandbox.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
