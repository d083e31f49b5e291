"""Take the screenshots of a report in docs/, from a real run of the built-in model.

    python tools/report_screenshots.py [--out out/screenshots]

Needs Chromium. The run evaluates a sample of the questions, which takes a minute or two, and it
resumes like any other run.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from playwright.sync_api import Browser, FloatRect, sync_playwright

import vlpress

DOCS = Path(__file__).resolve().parents[1] / "docs"
LIMIT = 60
RECIPE = "w3a16"  # low enough for some answers to change on few questions
MAX_BYTES = 300_000


class Shot(NamedTuple):
    """A screenshot of the top of the page, down to the end of an element."""

    file: str
    scheme: str
    width: int  # width of the window in CSS pixels
    last: str  # CSS selector of the last element
    scale: int  # device pixels per CSS pixel


SHOTS = (
    Shot("report-light.png", "light", 1280, "[data-bench]:nth-of-type(3)", 1),
    Shot("report-dark-phone.png", "dark", 390, "#scores", 2),
)


def main() -> None:
    """Run the job, open its page, and write the screenshots."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/screenshots"))
    out: Path = parser.parse_args().out
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no Chromium found; install Debian's package chromium")
    vlpress.run(out=out, recipe=RECIPE, limit=LIMIT, progress=True)
    page = (out / "report" / "report.html").resolve().as_uri()
    with sync_playwright() as playwright:
        # Without sandbox, to run as root in a container.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for shot in SHOTS:
            screenshot = take(browser, page, shot)
            (DOCS / shot.file).write_bytes(screenshot)
            print(f"docs/{shot.file}: {len(screenshot):,} bytes")
        browser.close()


def take(browser: Browser, page: str, shot: Shot) -> bytes:
    """Take a screenshot of the top of a page as PNG with a palette.

    Raises:
        ValueError: the file is too large for the repository.
    """
    context = browser.new_context(
        viewport={"width": shot.width, "height": 900},
        color_scheme="dark" if shot.scheme == "dark" else "light",
        device_scale_factor=shot.scale,
    )
    tab = context.new_page()
    tab.goto(page)
    bottom = tab.locator(shot.last).evaluate("e => e.getBoundingClientRect().bottom")
    area: FloatRect = {"x": 0, "y": 0, "width": shot.width, "height": round(bottom) + 24}
    full = Image.open(io.BytesIO(tab.screenshot(full_page=True, clip=area)))
    context.close()
    buffer = io.BytesIO()
    full.convert("RGB").quantize(128).save(buffer, format="PNG", optimize=True)
    if buffer.tell() > MAX_BYTES:
        raise ValueError(f"{shot.file} has {buffer.tell()} bytes, {MAX_BYTES} are allowed; cut it")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
