from PIL import Image
from report_screenshots import DOCS, MAX_BYTES, SHOTS


def test_docs_hold_a_small_picture_of_each_shot_and_show_it() -> None:
    text = (DOCS / "report.md").read_text("utf-8")
    for shot in SHOTS:
        path = DOCS / shot.file
        with Image.open(path) as picture:
            assert picture.width == shot.width * shot.scale
        assert path.stat().st_size <= MAX_BYTES
        assert shot.file in text
