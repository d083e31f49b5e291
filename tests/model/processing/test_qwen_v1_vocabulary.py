"""The tokenizer of Qwen-VL of 2023 on its published file, which the `dashscope` package ships."""

from __future__ import annotations

import json
import unicodedata
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from qwen_v1_models import CONFIG
from qwen_v1_reference import tokenize

from vlpress.model.config import ModelConfig
from vlpress.model.processing.rank_file import read_ranks
from vlpress.model.processing.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow

# As the published tokenizer splits texts into words.
WORDS = import_module("regex").compile(
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"""
    r"""| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
TEXTS = (
    "What's shown in the picture? Answer with A, B, C or D.",
    "  leading spaces,\ttabs\n\n\nand   empty lines  \n",
    "图片里的文字是什么？請用繁體中文回答。",
    "Привет, עברית, हिन्दी, ภาษาไทย, 日本語のテキスト, 한국어",
    "cafe\u0301 and caf\u00e9, A\u030angstro\u0308m, \u212b",  # NFC joins some
    "1234567890 3.14159 0x1F 2024-01-31",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * 0.5f; }\r\n\r\n// done",
    "emoji 👩‍👩‍👧 🇩🇪 ✅, math ∑∫√≠≤, they'll I'M",
    "(12,34),(56,78) zero\u200bwidth no\u00a0break \u3000wide \ufeffmark",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = find_spec("dashscope")
    assert spec is not None and spec.submodule_search_locations, "install the extra 'test'"
    package = Path(next(iter(spec.submodule_search_locations)))
    folder = tmp_path_factory.mktemp("published")
    (folder / "qwen.tiktoken").symlink_to(package / "resources" / "qwen.tiktoken")
    visual = CONFIG["visual"] | {"image_start_id": 151857}
    config = CONFIG | {"vocab_size": 151936, "visual": visual}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder, ModelConfig.from_folder(folder))


def test_texts_are_merged_by_the_published_ranks(folder: Path, tokenizer: Any) -> None:
    ranks = {token: rank for rank, token in enumerate(read_ranks(folder / "qwen.tiktoken"))}
    assert len(ranks) == 151643
    for text in TEXTS:
        normal = unicodedata.normalize("NFC", text)
        expected = [
            token for word in WORDS.findall(normal) for token in tokenize(word.encode(), ranks)
        ]
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == expected, text
        assert tokenizer.decode(ids) == normal


def test_published_special_tokens(tokenizer: Any) -> None:
    text = "<|im_start|>Picture 1: <img><imgpad></img><ref>a</ref><box>(1,2)</box><|im_end|>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    special = [151644, 151857, 151859, 151858, 151851, 151852, 151853, 151854, 151645]
    assert [token for token in ids if token >= 151643] == special
    assert len(tokenizer) == 151860
