"""The verb `search` on a small random model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_random_model, make_tiny_config, write_checkpoint_folder
from typer.testing import CliRunner

import vlpress
from vlpress.cli import main
from vlpress.eval.search import run as search_run
from vlpress.eval.search.summary import counts, summarize_search
from vlpress.quant.recipe.recipe import Recipe


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = make_tiny_config(
        tied=True, dtype="float32", text={"num_hidden_layers": 1}, vision={"depth": 1}
    )
    folder = tmp_path_factory.mktemp("model")
    return write_checkpoint_folder(folder, make_random_model(config=config))


def search(model: Path, out: Path, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"bits": 4.2, "calib_samples": 3, "check": 2, "device": "cpu"}
    return vlpress.search(model, out, **{**options, **changes})


@pytest.fixture(scope="module")
def found(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A recipe under a size that rules out float towers and embeddings."""
    out = tmp_path_factory.mktemp("found") / "found.toml"
    return out, search(model, out, budget="560kB", bits=None, check=4, errors="gptq")


def test_quantize_runs_the_recipe_and_writes_the_predicted_bytes(
    model: Path, found: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    path, result = found
    assert result["bytes"] <= 560_000 and result["budget"]["bytes"] == 560_000
    recipe = Recipe.from_toml(path)
    assert recipe.calibration.samples == 3 and recipe.name == "found"
    content = vlpress.quantize(model, tmp_path / "out", recipe=str(path), device="cpu")
    assert content["bytes"] == result["bytes"] == sum(result["parts"].values())
    assert content["parts"] == result["parts"]


def test_the_result_adds_up(found: tuple[Path, dict[str, Any]]) -> None:
    _, result = found
    chosen = [
        next(c for c in group["choices"] if c["label"] == group["choice"])
        for group in result["groups"]
    ]
    assert result["loss"] == pytest.approx(sum(choice["loss"] for choice in chosen))
    rows = counts(result)
    assert sum(row["groups"] for row in rows) == len(result["groups"])
    assert sum(row["loss"] for row in rows) == pytest.approx(result["loss"])
    text = summarize_search(result)
    assert f"{result['loss']:.4g} nats" in text and "4 choices applied alone" in text
    json.dumps(result)


def test_the_recipe_says_what_was_predicted(found: tuple[Path, dict[str, Any]]) -> None:
    path, result = found
    head = [line for line in path.read_text("utf-8").splitlines() if line.startswith("#")]
    text = "\n".join(head)
    for part in (
        f"{result['loss']:.4g} nats",
        f"{result['bytes']} bytes",
        "560000 bytes",
        f"rank correlation {result['check']['spearman']:.2f}",
        result["command"],
    ):
        assert part in text


def test_a_larger_budget_predicts_less_loss(model: Path, tmp_path: Path) -> None:
    results = [search(model, tmp_path / f"{bits}.toml", bits=bits, check=0) for bits in (3.2, 5.0)]
    assert results[0]["loss"] > 4 * results[1]["loss"] > 0
    assert 3 < results[0]["bits"] <= 3.2 and 4.5 < results[1]["bits"] <= 5
    assert results[0]["check"] is None
    assert "not checked" in (tmp_path / "3.2.toml").read_text("utf-8")
    again = search(model, tmp_path / "again.toml", bits=3.2, check=0)
    assert again["groups"] == results[0]["groups"]


def test_zeros_are_a_budget_too(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.toml"
    result = search(model, path, keep=0.5, score="wanda", check=1)
    assert 0.4 < result["kept"] <= 0.5 == result["budget"]["keep"]
    assert result["bits"] <= 4.2
    masks = [step.mask for step in Recipe.from_toml(path).steps]
    assert {mask.score for mask in masks if mask} == {"wanda"}
    text = path.read_text("utf-8")
    assert f"{result['kept']:.1%} of the weights are kept" in text and "--score wanda" in text


def test_latency_is_a_budget_too(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        search_run,
        "time_layers",
        lambda shapes, dtype, update: {s: 0.01 * (s[2].bits if s[2] else 16) for s in shapes},
    )
    slow = search(model, tmp_path / "slow.toml", bits=5.0, check=0, latency=9.0)
    fast = search(model, tmp_path / "fast.toml", bits=5.0, check=0, latency=0.45)
    assert fast["milliseconds"] <= 0.45 < slow["milliseconds"] and fast["loss"] > slow["loss"]
    # Seven layers with 2 bits, and the head with 8.
    with pytest.raises(ValueError, match=r"--latency 0.1 is too low; .* is 0.22\d ms"):
        search(model, tmp_path / "none.toml", bits=5.0, latency=0.1)
    assert not (tmp_path / "none.toml").exists()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no budget": ({"bits": None}, "no budget is given; give --budget SIZE .* --bits N"),
    "no zeros": ({"score": "wanda"}, "--score wanda without --keep"),
    "size": ({"budget": "2.4XB"}, "'--budget': '2.4XB'; allowed: .*2.4GB"),
    "bits": ({"bits": 1.0}, "'--bits': 1.0; allowed: 2 to 16"),
    "too small": ({"budget": "1kB"}, "--budget 1000 bytes is too small .* checkpoint has"),
    "errors": ({"errors": "awq"}, "'awq'; allowed: rtn, gptq"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_options_are_refused(name: str, model: Path, tmp_path: Path) -> None:
    changes, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        search(model, tmp_path / "out.toml", **changes)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_recipe_is_kept(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "kept.toml"
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=r"kept\.toml: exists; .*--overwrite"):
        search(model, path)
    assert path.read_text("utf-8") == "mine"
    search(model, path, overwrite=True, check=0)
    assert "[[step]]" in path.read_text("utf-8")
    for wrong, message in (("kept.json", "no recipe file"), ("no/where.toml", "create it first")):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            search(model, tmp_path / wrong)


def test_samples_without_images_are_refused(model: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    row = {"question": "Which animal barks?", "answer": "A dog."}
    texts.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no calibration sample has an image"):
        search(model, tmp_path / "out.toml", calib=texts)


def test_a_quantized_model_is_refused(model: Path, tmp_path: Path) -> None:
    vlpress.quantize(model, tmp_path / "small", recipe="w4a16-rtn", device="cpu")
    with pytest.raises(ValueError, match="is quantized already"):
        search(tmp_path / "small", tmp_path / "out.toml")


def test_the_command_line_prints_the_table(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.toml"
    words = f"search {model} --bits 4.5 --check 0 --calib-samples 4 -o {out}"
    result = CliRunner().invoke(main.app, words.split())
    assert result.exit_code == 0, result.output
    assert "predicted loss" in result.stdout and "4.5 bits per decoder weight" in result.stdout
    assert f"vlpress quantize {model} --recipe {out}" in result.stdout
    again = CliRunner().invoke(main.app, words.split())
    assert again.exit_code == 2 and "--overwrite" in again.stderr
