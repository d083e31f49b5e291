"""Questions of a packed conversation have the hidden states of single-turn sequences."""

import pytest
import tiny_data
import tiny_draft
import tiny_segments
import tiny_student
import tiny_talk
import tiny_tokenizer
import torch
from tokenizers import Tokenizer
from torch import Tensor

from vlpress.model.loading import resolve_model
from vlpress.model.mtp import draft_logits
from vlpress.model.processing.inputs import Batch

FAMILY = "qwen3_5"
Packed = tuple[tiny_student.Student, tiny_data.PackedBatch, Tensor, Tensor]


@pytest.fixture(scope="module")
def packed() -> Packed:
    tokenizer = Tokenizer.from_file(str(resolve_model("tiny") / "tokenizer.json"))
    tiny_tokenizer.add_thinking(tokenizer)
    torch.manual_seed(0)
    student = tiny_student.Student(tokenizer, FAMILY)
    feed = tiny_data.batches(tiny_talk.Writer(tokenizer), "decoder", 3, 2, 3, family=FAMILY)
    batch = next(each for each in feed if int(each.segment.max()) > 1)
    with torch.no_grad():
        features = {"hidden": student.true_features(batch.labels, 0.0)}
        hidden, embeds = student.decode(batch, features)
    return student, batch, embeds, hidden


def last_turn(packed: Packed, row: int) -> tuple[Batch, Tensor]:
    """The prefix and the last question of a conversation, and their columns."""
    _, batch, embeds, _ = packed
    segment = batch.segment[row]
    columns = torch.nonzero((segment == 0) | (segment == segment.max()))[:, 0]
    sequence = Batch(embeds[row : row + 1, columns], batch.position[:, row : row + 1, columns],
                     torch.zeros(1, dtype=torch.int64))  # fmt: skip
    return sequence, columns


@torch.no_grad()
def test_hidden_states_are_those_of_single_turns(packed: Packed) -> None:
    student, batch, _, hidden = packed
    for row in range(len(batch.ids)):
        sequence, columns = last_turn(packed, row)
        alone = student.qwen.model(sequence.embeds, sequence.position_ids)[0]
        assert torch.allclose(hidden[row, columns], alone, atol=1e-4)


@torch.no_grad()
def test_drafts_are_those_of_single_turns(packed: Packed) -> None:
    student, batch, embeds, hidden = packed
    assert student.mtp is not None
    rows = tiny_draft.draft_hidden(student.mtp, student.qwen, embeds, hidden, batch)
    for row in range(len(batch.ids)):
        sequence, columns = last_turn(packed, row)
        own = hidden[row : row + 1, columns]
        alone = draft_logits(student.qwen, student.mtp, sequence, own)[0]
        ours = student.qwen.logits(rows[row, columns[1:]])
        assert torch.allclose(ours, alone, atol=1e-3)


def test_gradients_reach_the_prefix(packed: Packed) -> None:
    student, batch, embeds, _ = packed
    embeds = embeds.clone().requires_grad_()
    state = student.qwen.model.prepare(embeds, batch.position)
    segments = tiny_segments.Segments(batch.segment, state["cos"], state["sin"])
    layer = student.qwen.model.layers[0]
    parts = segments.run(layer, segments.split(embeds), student.qwen.config.text)
    (gradient,) = torch.autograd.grad(parts[1].sum(), embeds)
    assert (gradient[batch.segment == 0].abs().sum(1) > 0).any()


def test_the_first_token_of_a_question_follows_the_prefix() -> None:
    segment = torch.tensor([[0, 0, 1, 1, 2, -1], [0, 0, 0, 1, -1, -1]])
    before, left = tiny_draft.tokens_before(segment)
    assert before[0, :5].tolist() == [0, 0, 1, 2, 1]
    assert before[1, :4].tolist() == [0, 0, 1, 2]
    assert left.tolist() == [[-1, 0, 1, 1, 2, -1], [-1, 0, 0, 1, -1, -1]]


def test_parts_join_to_the_packed_rows() -> None:
    segment = torch.tensor([[0, 0, 1, 1, 2], [0, 1, 1, -1, -1]])
    angles = torch.zeros(2, 5, 1)
    segments = tiny_segments.Segments(segment, angles, angles)
    x = torch.arange(20.0).view(2, 5, 2) + 1
    parts = segments.split(x)
    assert [tuple(part.shape) for part in parts] == [(2, 2, 2), (3, 2, 2)]
    assert torch.equal(segments.join(parts), x * (segment >= 0)[..., None])
