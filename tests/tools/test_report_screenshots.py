from PIL import Image
from report_screenshots import DOCS, MAX_BYTES, SHOTS


def test_docs_show_a_small_screenshot_of_each_shot() -> None:
    text = (DOCS / "report.md").read_text("utf-8")
    for shot in SHOTS:
        path = DOCS / shot.file
        with Image.open(path) as screenshot:
            assert screenshot.width == shot.width * shot.scale
        assert path.stat().st_size <= MAX_BYTES
        assert shot.file in text
