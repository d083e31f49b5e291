from pathlib import Path

import pytest
import tiny_data
import tiny_transfer
import torch
import transfer_tower
from tiny_student import Student, decoder_loss
from tiny_talk import Writer
from tokenizers import Tokenizer

from vlpress.model.deepstack_tower import DeepstackTower
from vlpress.model.loading import resolve_model
from vlpress.model.text import RMSNorm
from vlpress.model.vision import VisionTower


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(resolve_model("tiny") / "tokenizer.json"))


def test_norm_and_projection_agree_inside_the_kept_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(5, 12, generator=generator)
    hidden = torch.randn(40, 5, generator=generator) @ directions  # of 12 dimensions 5 are used
    example = transfer_tower.Example(None, hidden[None], hidden)  # type: ignore[arg-type]
    basis = transfer_tower.find_basis([example], width=6)
    projected = hidden.double() @ basis.matrix.t()
    assert float(projected.mean(1).abs().max()) < 1e-9

    norm = RMSNorm(12, 1e-6)
    torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    weight = torch.randn(3, 12, generator=generator)
    new = torch.nn.functional.layer_norm(projected, (6,), eps=1e-6) @ (
        basis.after_norm(weight, norm).t()
    )
    assert torch.allclose(new, (norm(hidden) @ weight.t()).double(), atol=1e-3)


def test_kept_channels_have_the_nearest_frequencies() -> None:
    pairs = [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]  # of 12 frequencies for rows, 11 are kept
    both = [*pairs, *(12 + pair for pair in pairs)]
    expected = [*both, *(24 + channel for channel in both)]
    assert transfer_tower.kept_channels(48, 44).tolist() == expected
    assert transfer_tower.kept_channels(44, 44).tolist() == list(range(44))


def test_embedding_is_exact_inside_the_basis(tokenizer: Tokenizer) -> None:
    old, new = (Student(tokenizer, family).qwen.visual for family in ("qwen2_5_vl", "qwen3_vl"))
    assert isinstance(old, VisionTower)
    assert isinstance(new, DeepstackTower)
    examples = tiny_transfer.image_examples(old, seed=3, count=1)
    basis = transfer_tower.find_basis(examples, new.config.hidden_size)
    transfer_tower.transfer_embedding(old, new, basis)
    ours = new.prepare(examples[0].batch.patches, examples[0].batch.grid)["hidden"]
    theirs = examples[0].states[0].double() @ basis.matrix.t()
    assert torch.allclose(ours.double(), theirs, atol=1e-4)


@pytest.mark.slow  # 40 s
def test_transferred_model_answers_better_than_an_untrained_one(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "begin.pt"
    small = ["--batches", "4", "--steps", "40", "--conversations", "16", "--processes", "1"]
    monkeypatch.setattr("sys.argv", ["x", "--state", str(state), *small])
    monkeypatch.setattr(tiny_transfer, "MERGER_EXAMPLES", 3)
    tiny_transfer.main()
    saved = torch.load(state, weights_only=True)
    student = Student(tokenizer, "qwen3_vl")
    untrained = answer_loss(student, tokenizer)
    student.load_state_dict(saved["model"])
    assert answer_loss(student, tokenizer) < untrained / 2


@torch.no_grad()
def answer_loss(student: Student, tokenizer: Tokenizer) -> float:
    talks = tiny_transfer.conversations(Writer(tokenizer), seed=8, count=4)
    batch = tiny_data.pack(talks, "qwen3_vl")
    hidden, middle = student.decode(batch, student.features(batch))
    loss, _ = decoder_loss(student, hidden, middle, batch)
    return float(loss)
