"""Tokenizer, prompts and images of Qwen-VL of 2023."""

from __future__ import annotations

import base64
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from qwen_v1_models import CONFIG, PAD, SIDE, SPECIAL, TOKENS, write_v1_checkpoint
from qwen_v1_reference import pixels_of, tokenize

from vlpress.model.config import ModelConfig
from vlpress.model.loading import load_model
from vlpress.model.processing.processor import Processor
from vlpress.model.processing.qwen_v1_tokenizer import SPECIAL_TOKENS
from vlpress.model.processing.rank_file import merges_of, read_ranks
from vlpress.model.processing.tokenizer import load_tokenizer

RANKS = {token: rank for rank, token in enumerate(TOKENS)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen-v1-inputs")
    write_v1_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def processor(folder: Path) -> Processor:
    return Processor.from_folder(folder)


def picture(seed: int, size: tuple[int, int] = (61, 40)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_published_ids_follow_the_ranks() -> None:
    ids = {token: 151643 + index for index, token in enumerate(SPECIAL_TOKENS)}
    assert ids["<|endoftext|>"] == 151643
    assert ids["<|im_end|>"] == 151645
    assert (ids["<|extra_0|>"], ids["<|extra_204|>"]) == (151646, 151850)
    assert (ids["<ref>"], ids["<box>"], ids["</quad>"]) == (151851, 151853, 151856)
    assert (ids["<img>"], ids["</img>"], ids["<imgpad>"]) == (151857, 151858, 151859)


def test_words_are_merged_by_ranks(processor: Processor) -> None:
    words = ["the", " then", " thing", "..", "中文", "12", "\n", "  ", "thther", "t\u0301", "é"]
    for word in words:
        pieces = [word] if word != "12" else ["1", "2"]  # digits are words of their own
        expected = [
            token
            for piece in pieces
            for token in tokenize(unicodedata.normalize("NFC", piece).encode(), RANKS)
        ]
        ids = processor.tokenizer.encode(word, add_special_tokens=False)
        assert ids == expected, word
    text = "In the beginning, 中文… \t 3.14!\r\n\r\nthe  end"
    ids = processor.tokenizer.encode(text, add_special_tokens=False)
    assert processor.decode(ids) == text
    assert len(ids) < len(text.encode())


def test_a_merge_is_found_by_merging_the_tokens_of_lower_ranks() -> None:
    # "abc" could be cut into "ab" + "c" or "a" + "bc", and bytes merge to "bc" first.
    tokens = [bytes([byte]) for byte in range(256)] + [b"bc", b"ab", b"abc", b"zzzz"]
    assert merges_of(tokens) == [(b"b", b"c"), (b"a", b"b"), (b"a", b"bc")]


def test_a_prompt_is_chatml_with_numbered_pictures(processor: Processor) -> None:
    images = [{"type": "image", "image": picture(seed)} for seed in range(2)]
    content = [*images, {"type": "text", "text": "the thing?"}]
    prompt = processor.encode([{"role": "user", "content": content}], answer="A")
    pads = "<imgpad>" * 16
    assert processor.tokenizer.decode(prompt.input_ids.tolist()) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"Picture 1: <img>{pads}</img>\nPicture 2: <img>{pads}</img>\nthe thing?<|im_end|>\n"
        "<|im_start|>assistant\nA<|im_end|>"
    )
    assert (prompt.input_ids == PAD).sum() == 32
    assert prompt.answer_tokens == 2
    assert prompt.position_ids.tolist() == [list(range(len(prompt)))] * 3
    assert processor.stop_ids == {SPECIAL["<|im_end|>"], SPECIAL["<|endoftext|>"]}
    other = processor.encode(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the"}]
    )
    assert processor.tokenizer.decode(other.input_ids.tolist()) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nthe<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_published_images_have_256_tokens(folder: Path) -> None:
    visual = CONFIG["visual"] | {"image_size": 448, "n_queries": 256}
    config = ModelConfig.from_dict(CONFIG | {"visual": visual})
    processor = Processor(config, load_tokenizer(folder, config))
    content = [{"type": "image", "image": picture(0)}, {"type": "text", "text": "the"}]
    prompt = processor.encode([{"role": "user", "content": content}])
    assert (prompt.input_ids == PAD).sum() == 256
    assert prompt.visuals[0].patches.shape == (1024, 588)


def test_images_are_scaled_to_a_square(folder: Path, processor: Processor) -> None:
    image = picture(1, (90, 31))
    visual = processor.image(image)
    assert visual.grid == (1, 8, 8)
    pixels = pixels_of(image, SIDE)
    tiles = pixels.reshape(3, 4, 2, 14, 4, 2, 14).permute(1, 4, 2, 5, 0, 3, 6).reshape(64, -1)
    torch.testing.assert_close(visual.patches.double(), tiles, atol=1e-6, rtol=0)
    assert load_model(folder, device="cpu").encode([visual])[0]["hidden"].shape == (16, 256)


def test_videos_and_sizes_are_refused(folder: Path, processor: Processor) -> None:
    with pytest.raises(ValueError, match="images only"):
        processor.video([picture(0), picture(1)])
    with pytest.raises(ValueError, match="112 x 112"):
        Processor.from_folder(folder, max_pixels=5000)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (b"IQ== 0\nIg==\n", "line 2"),
        (b"IQ== 0\nIg== x\n", "line 2"),
        (b"!! 0\n", "line 1"),
        (b"IQ== 0\nIg== 0\n", "rank 0 is given twice"),
        (b"IQ== 0\nIg== 2\n", "none of rank 1"),
        (b"IQ== 0\nIQ== 1\n", "has two ranks"),
        (b"IQ== 0\n", "byte 0"),
        (b"version https://git-lfs", "Git LFS pointer"),
    ],
)
def test_damaged_rank_files(tmp_path: Path, lines: bytes, words: str) -> None:
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(lines)
    with pytest.raises(ValueError, match=words):
        read_ranks(path)


def test_tokenizers_of_other_models(tmp_path: Path) -> None:
    write_v1_checkpoint(tmp_path)
    config = ModelConfig.from_folder(tmp_path)
    path = tmp_path / "qwen.tiktoken"
    rows = path.read_bytes()
    path.write_bytes(rows + base64.b64encode(b"zz") + b" %d\n" % len(TOKENS))
    with pytest.raises(ValueError, match="image_token_id"):
        load_tokenizer(tmp_path, config)
    path.write_bytes(b"IQ==\n")
    with pytest.raises(ValueError, match=r"qwen\.tiktoken, line 1"):
        load_tokenizer(tmp_path, config)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no qwen\.tiktoken"):
        load_tokenizer(tmp_path, config)
