"""The verb `generate`: forms of images and videos, streaming."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import make_random_model, make_tiny_config, write_checkpoint_folder

from vlpress.model.mtp import MultiTokenPredictor
from vlpress.quant.api import quantize
from vlpress.quant.generate import generate


def prompt_tokens(checkpoint: Path, **media: Any) -> int:
    answer = generate(checkpoint, "What?", max_new_tokens=1, device="cpu", **media)
    return int(answer["prompt_tokens"])


def test_images_are_given_as_in_messages(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "an image.png"
    Image.new("RGB", (112, 84), "red").save(path)
    url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    plain = prompt_tokens(checkpoint)
    monkeypatch.chdir(tmp_path)
    images = (path, str(path), path.as_uri(), f"file://{path}", "an image.png", url)
    # 4 x 3 tokens between the two that mark an image
    assert prompt_tokens(checkpoint, image=images) == plain + 14 * len(images)


def test_missing_media_are_refused(checkpoint: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        prompt_tokens(checkpoint, image=["file:///nowhere.png"])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4"):
        prompt_tokens(checkpoint, video="file:///nowhere.mp4")
    with pytest.raises(ValueError, match="download it first"):
        prompt_tokens(checkpoint, image=["https://x.org/a.png"])


def test_text_is_streamed_to_a_callback(checkpoint: Path) -> None:
    pieces: list[str] = []
    answer = generate(checkpoint, "What?", max_new_tokens=4, device="cpu", on_text=pieces.append)
    assert "".join(pieces) == answer["answer"]


@pytest.mark.parametrize("draft", ["ngram", "itself", "rounded"])
def test_drafts_do_not_change_the_answer(checkpoint: Path, tmp_path: Path, draft: str) -> None:
    names: dict[str, str | Path] = {"ngram": draft, "itself": checkpoint}
    name = names.get(draft, tmp_path / "out")
    if draft == "rounded":
        quantize(checkpoint, tmp_path / "out", recipe="w8a16-rtn")
    image = Image.new("RGB", (112, 84), "red")
    image.save(tmp_path / "image.png")
    options: dict[str, Any] = {"max_new_tokens": 12, "image": tmp_path / "image.png"}
    plain = generate(checkpoint, "What? What?", device="cpu", **options)
    pieces: list[str] = []
    answer = generate(
        checkpoint, "What? What?", device="cpu", draft=name, on_text=pieces.append, **options
    )
    figures = answer.pop("draft")
    assert answer == plain and "".join(pieces) == answer["answer"]
    tokens = plain["tokens"] - 1 + plain["stopped"]
    assert figures["tokens_per_pass"] == pytest.approx(tokens / figures["passes"])
    if draft == "itself":
        assert figures["accepted_share"] == 1 and figures["tokens_per_pass"] > 3


def test_unsuitable_drafts_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    def refused(message: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            generate(checkpoint, "?", device="cpu", **options)

    refused("has no module for multi-token prediction", draft="mtp")
    refused("'--draft-tokens': 0; allowed: 1 to 32", draft="ngram", draft_tokens=0)
    other = write_checkpoint_folder(tmp_path / "other")
    file = other / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(tokenizer))
    refused("its tokenizer differs from that of .* in 4 entries", draft=other)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        generate(checkpoint, "?", device="cpu", draft=tmp_path / "nowhere")


def test_multi_token_prediction_drafts(tmp_path: Path) -> None:
    config = make_tiny_config("qwen3_5", text={"mtp_num_hidden_layers": 1})
    model = make_random_model(config=config)
    torch.manual_seed(5)
    predictor = MultiTokenPredictor(model.config.text)
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    extra = {f"mtp.{name}": value for name, value in predictor.state_dict().items()}
    folder = write_checkpoint_folder(tmp_path / "with", model, extra=extra)
    plain = generate(folder, "What?", device="cpu", max_new_tokens=8)
    answer = generate(folder, "What?", device="cpu", max_new_tokens=8, draft="mtp")
    assert answer["answer"] == plain["answer"]
    assert answer["draft"]["drafted"] > 0
    without = write_checkpoint_folder(tmp_path / "without", model)
    with pytest.raises(ValueError, match="has no module for multi-token prediction"):
        generate(without, "What?", device="cpu", draft="mtp")
