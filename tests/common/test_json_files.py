import json
from pathlib import Path

import pytest

from vlpress.common.json_files import read_json


def test_objects_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"a": [1, "ü"]}), encoding="utf-8")
    assert read_json(tmp_path / "x.json", "remove it") == {"a": [1, "ü"]}


@pytest.mark.parametrize("text", ["[" * 10**5, "{", "", "[1]", "null", "\ud800"])
def test_other_content_is_refused_with_file_and_remedy(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ValueError, match=r"x\.json: .*; remove it$") as error:
        read_json(path, "remove it")
    assert "\n" not in str(error.value)
