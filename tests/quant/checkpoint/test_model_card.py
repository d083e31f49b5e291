from pathlib import Path

import pytest
from format_files import checkpoint, recipe
from huggingface_hub.repocard import metadata_load
from tiny_models import small_config

from vlpress.quant.checkpoint.export import export
from vlpress.quant.checkpoint.model_card import CARD, Base, write_model_card
from vlpress.quant.checkpoint.snippets import SNIPPETS
from vlpress.quant.driver.report import QuantReport


def test_programs_of_engines_that_were_not_tried_are_marked(tmp_path: Path) -> None:
    raw = small_config("qwen2_vl")
    _, _, folder = checkpoint(tmp_path, recipe(), "compressed-tensors", raw=raw)
    text = (folder / CARD).read_text()
    assert "loads it" not in text
    marked = text.index("Not tried with a checkpoint of this kind:")
    assert marked < text.index("### transformers\n") < text.index("### vLLM\n")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> tuple[QuantReport, Path]:
    _, report, folder = checkpoint(tmp_path_factory.mktemp("card"), recipe(), "compressed-tensors")
    return report, folder


def test_a_checkpoint_has_a_card(quantized: tuple[QuantReport, Path]) -> None:
    report, folder = quantized
    text, metadata = (folder / CARD).read_text(), metadata_load(folder / CARD)
    assert metadata == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["vlpress", "quantized", "compressed-tensors"],
        "quantized_from": "source",
    }
    assert "# source, quantized: int4 g32 sym\n" in text
    assert f"{report.bits_per_weight:.2f} bits per weight" in text
    assert "- 14 layers: int4 g32 sym\n" in text and "- No calibration\n" in text
    assert "| vLLM 0.32.0 (CPU) | loads it |" in text
    assert all(f"### {name}\n" in text for name in ("transformers", "vLLM", "mlx-vlm"))
    assert "### GPTQModel" not in text
    assert str(folder) not in text and str(folder.parent) not in text


def test_license_and_base_of_a_hub_model(
    quantized: tuple[QuantReport, Path], tmp_path: Path
) -> None:
    source, folder = tmp_path / "snapshot", quantized[1]
    source.mkdir()
    (source / CARD).write_text(
        "---\nlicense: other\nlicense_name: research\nlicense_link: LICENSE\ntags: [a]\n---\n# Q\n"
    )
    base = Base.of("Owner/Model-3B", source)
    assert base.hub_id == "Owner/Model-3B" and Base.of(source, source).hub_id is None
    write_model_card(folder, base, "## Scores\n\nall right")
    metadata, text = metadata_load(folder / CARD), (folder / CARD).read_text()
    assert metadata is not None
    assert metadata["base_model"] == "Owner/Model-3B"
    assert metadata["base_model_relation"] == "quantized"
    assert (metadata["license"], metadata["license_name"]) == ("other", "research")
    assert "License: research." in text and "\n## Scores\n\nall right\n" in text
    export(folder, tmp_path / "gptq", "gptq")
    exported = metadata_load(tmp_path / "gptq" / CARD)
    assert exported == {**metadata, "tags": ["vlpress", "quantized", "gptq"]}
    assert "### GPTQModel\n" in (tmp_path / "gptq" / CARD).read_text()


@pytest.mark.parametrize("card", ["", "no metadata", "---\n: [\n---\n", "---\nlicense: [a]\n---\n"])
def test_a_card_without_usable_license(card: str, tmp_path: Path) -> None:
    (tmp_path / CARD).write_text(card)
    assert Base.of("Owner/Model", tmp_path).license == {}


def test_snippets_are_complete() -> None:
    for snippet in SNIPPETS:
        text = snippet.text("out/checkpoint", "a.png", "Which?")
        assert "CHECKPOINT" not in text and "QUESTION" not in text and "photo.jpg" not in text
        if snippet.language == "python":
            compile(text, snippet.engine, "exec")


def test_the_page_shows_the_snippets() -> None:
    page = (Path(__file__).parents[3] / "docs" / "use-the-checkpoint.md").read_text()
    for snippet in SNIPPETS:
        code = snippet.text("out/checkpoint")
        assert f"```{snippet.language}\n{code}```" in page, snippet.engine
        assert f"`{snippet.install}`" in page
