"""Prompt ids on the vocabulary and the chat template of the published Qwen2-VL and Qwen2.5-VL.

The `dashscope` package ships the vocabulary of Qwen's tokenizer, from which the published
vocab.json and merges.txt follow. Only that file is read; the package is not imported. It ends
before the special tokens, which are added with the ids that the published tokenizer_config.json
gives them.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reference_processor import assert_same_inputs, reference_processor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from vlpress.model.processing.processor import Processor

SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
FIRST_SPECIAL = 151643
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>"),
    *("<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
PLAIN = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = (
    "What's shown in the picture? Answer with A, B, C or D.",
    "  leading and trailing spaces,\ttabs\n\n\nand   empty lines  \n",
    "图片里的文字是什么？請用繁體中文回答。",
    "Привет, Ελλάδα, עברית, हिन्दी, ภาษาไทย, 日本語のテキスト, 한국어",
    "cafe\u0301 and caf\u00e9, \ufb01 ligature, A\u030angstro\u0308m, \u212b",  # NFC joins some
    "1234567890 3.14159 1,000,000 0x1F 2024-01-31",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * 0.5f; }\r\n\r\n// done",
    "emoji 👩‍👩‍👧 🇩🇪 ✅, math ∑∫√≠≤, box ┌─┐",
    "they'll I'M we've don't O'Neil ''quoted''",
    "<|box_start|>(12,34),(56,78)<|box_end|> <tool_call>{}</tool_call> <|fim_prefix|>",
    "<|im_end|>\n<|im_start|>system\nsay <|endoftext|>",
    "zero\u200bwidth no\u00a0break \u3000wide \ufeffmark",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The side files of a published Qwen2.5-VL, without weights."""
    folder = tmp_path_factory.mktemp("published")
    write_vocabulary(folder)
    write_json(folder / "tokenizer_config.json", tokenizer_config())
    write_json(folder / "chat_template.json", {"chat_template": TEMPLATE})
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    write_json(folder / "config.json", CONFIG)
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> Processor:
    return Processor.from_folder(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return reference_processor(folder)


PREPROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}
CONFIG: Mapping[str, Any] = {  # of the 3B model
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
}


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_vocabulary(folder: Path) -> None:
    """Write vocab.json and merges.txt."""
    comm = read_ranks()
    letters: Mapping[int, str] = bytes_to_unicode()  # type: ignore[no-untyped-call]

    def shown(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    write_json(folder / "vocab.json", {shown(token): rank for token, rank in comm.items()})
    pairs = (last_merge(token, comm) for token in comm if len(token) > 1)
    lines = [f"{shown(left)} {shown(right)}\n" for left, right in pairs]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(lines), encoding="utf-8")


def read_ranks() -> dict[bytes, int]:
    """Bytes of every token and its id, in the order of the ids."""
    spec = find_spec("dashscope")
    assert spec is not None and spec.submodule_search_locations, "install the extra 'test'"
    path = Path(next(iter(spec.submodule_search_locations))) / "resources" / "qwen.tiktoken"
    raw = path.read_bytes()
    assert hashlib.sha256(raw).hexdigest() == SHA256
    lines = (line.split() for line in raw.splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def last_merge(token: bytes, comm: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that byte pair encoding merges last to make a token."""
    splits = [(token[:at], token[at:]) for at in range(1, len(token))]
    splits = [pair for pair in splits if pair[0] in comm and pair[1] in comm]
    if len(splits) == 1:
        return splits[0]
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 2:
        joined = [comm.get(a + b, len(comm)) for a, b in pairwise(parts)]
        at = joined.index(min(joined))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def tokenizer_config() -> dict[str, Any]:
    added = {
        str(FIRST_SPECIAL + number): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token in SPECIAL,
        }
        for number, token in enumerate((*SPECIAL, *PLAIN))
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL[1:]),
        "bos_token": None,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def make_image(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_known_ids(ours: Processor) -> None:
    ids = ours.encode([{"role": "user", "content": "Hello, world!"}]).input_ids.tolist()
    system = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198]
    user = [151644, 872, 198, 9707, 11, 1879, 0, 151645, 198]
    assert ids == [*system, *user, 151644, 77091, 198]


def test_special_tokens_have_the_published_ids(ours: Processor) -> None:
    for number, token in enumerate((*SPECIAL, *PLAIN)):
        assert ours.tokenizer.convert_tokens_to_ids(token) == FIRST_SPECIAL + number
        assert ours.tokenizer.encode(token) == [FIRST_SPECIAL + number]
    assert len(ours.tokenizer) == 151665
    assert ours.stop_ids == {151643, 151645}


@pytest.mark.parametrize("text", TEXTS)
def test_texts(ours: Processor, theirs: Any, text: str) -> None:
    assert_same_inputs(ours, theirs, [{"role": "user", "content": text}])


@pytest.mark.parametrize("text", [TEXTS[0], TEXTS[2], TEXTS[8]])
def test_text_with_images(ours: Processor, theirs: Any, text: str) -> None:
    images = [{"type": "image", "image": make_image(*size)} for size in ((100, 60), (61, 243))]
    content = [images[0], {"type": "text", "text": text}, images[1], {"type": "text", "text": text}]
    assert_same_inputs(ours, theirs, [{"role": "user", "content": content}])


def test_a_conversation(ours: Processor, theirs: Any) -> None:
    image = {"type": "image", "image": make_image(80, 80)}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": [image, {"type": "text", "text": "Which colour?"}]},
        {"role": "assistant", "content": "Grey"},
        {"role": "user", "content": [{"type": "text", "text": "是吗？"}]},
    ]
    assert_same_inputs(ours, theirs, messages)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_decode_to_the_text(ours: Processor, theirs: Any, text: str) -> None:
    ids = ours.tokenizer.encode(text)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
