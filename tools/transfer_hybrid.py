r"""First weights of the built-in Qwen3.5, taken over from the built-in Qwen3-VL.

The tower without its DeepStack mergers, the embedding and the norms are taken over as they are;
stored norms of Qwen3.5 are smaller by 1. Five of the eight decoder layers begin as layers of the
Qwen3-VL, the other three add nothing at first:

- MLPs keep the neurons that contribute most, as in `transfer_decoder.py`;
- full attention takes over all projections. Of the rotary pairs every fourth is kept, as it has the
  same frequency and axis in both; the others are no longer rotated. Gates begin at one half, which
  `o_proj` makes up for;
- every attention, full or linear, is then trained on its own towards the output of the one that it
  replaces, on the inputs of that one ("Transformers to SSMs", arXiv 2408.10189, section 4.2).

    python tools/transfer_hybrid.py --state state/begin.pt --minutes 8
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import tiny_data
import tiny_tokenizer
import torch
import torch.nn.functional as F
from tiny_data import PackedBatch
from tiny_segments import Segments
from tiny_student import Student
from tiny_talk import Writer
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from train_tiny import fast_rule, learning_rate, plain_attention
from transfer_decoder import LayerStatistics, transfer_mlp

from vlpress.model.loading import load_model
from vlpress.model.mlp import MLP
from vlpress.model.text import Attention, DecoderLayer

OLD, NEW = "qwen3_vl", "qwen3_5"
SOURCES = (0, None, 1, 2, None, 3, None, 4)
"""The layer of the Qwen3-VL that each layer begins as; None: a layer that adds nothing."""
KEPT_PAIRS = 4  # of the rotary pairs, every fourth


def channel_order(head_dim: int) -> Tensor:
    """Old channels of a head in the order of the new head: the rotated ones first."""
    pairs = head_dim // 2
    kept = torch.arange(0, pairs, KEPT_PAIRS)
    rotated = torch.cat([kept, kept + pairs])
    rest = [c for c in range(head_dim) if c % pairs % KEPT_PAIRS]
    return torch.cat([rotated, torch.tensor(rest)])


@torch.no_grad()
def transfer_attention(old: Attention, new: Attention) -> None:
    """Take over full attention without the rotation of three of four pairs."""
    size, order = old.head_dim, channel_order(old.head_dim)
    hidden = old.q_proj.in_features
    queries = old.q_proj.weight.view(-1, size, hidden)[:, order]
    new.q_proj.weight.copy_(torch.cat([queries, torch.zeros_like(queries)], 1).flatten(0, 1))
    new.k_proj.weight.copy_(old.k_proj.weight.view(-1, size, hidden)[:, order].flatten(0, 1))
    new.v_proj.weight.copy_(old.v_proj.weight)
    new.o_proj.weight.copy_(2 * old.o_proj.weight)  # the gates are one half
    for before, after in ((old.q_norm, new.q_norm), (old.k_norm, new.k_norm)):
        assert before is not None
        assert after is not None
        after.weight.copy_(before.weight[order] - 1)


@torch.no_grad()
def silence(layer: DecoderLayer) -> None:
    """Let a layer with linear attention add nothing to its input."""
    assert layer.linear_attn is not None
    assert isinstance(layer.mlp, MLP)
    layer.linear_attn.out_proj.weight.zero_()
    layer.mlp.down_proj.weight.zero_()


@torch.no_grad()
def transfer_layers(
    old: Sequence[DecoderLayer], new: Sequence[DecoderLayer], seen: Sequence[LayerStatistics]
) -> None:
    """Begin all layers; linear attention stays as it is initialized."""
    for layer, source in zip(new, SOURCES, strict=True):
        if source is None:
            silence(layer)
            continue
        assert isinstance(layer.mlp, MLP)
        before = old[source]
        layer.input_layernorm.weight.copy_(before.input_layernorm.weight - 1)
        norm = before.post_attention_layernorm.weight - 1
        layer.post_attention_layernorm.weight.copy_(norm)
        transfer_mlp(layer.mlp, seen[source])
        if layer.self_attn is not None:
            transfer_attention(before.full_attention, layer.self_attn)


@torch.no_grad()
def transfer_rest(old: Student, new: Student) -> None:
    """Take over the tower, the embedding of the shared tokens, and the final norm."""
    kept = new.qwen.visual.state_dict()
    tower = {k: v for k, v in old.qwen.visual.state_dict().items() if k in kept}
    new.qwen.visual.load_state_dict(tower)
    table = old.qwen.model.embed_tokens.weight
    new.qwen.model.embed_tokens.weight[: len(table)] = table
    new.qwen.model.norm.weight.copy_(old.qwen.model.norm.weight - 1)


class AttentionRecorder:
    """Inputs and outputs of the attention of every layer of the Qwen3-VL, of its last batch."""

    def __init__(self, layers: Sequence[DecoderLayer]) -> None:
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}
        self.handles: list[RemovableHandle] = []
        for index, layer in enumerate(layers):

            def keep(_: nn.Module, args: tuple[Tensor, ...], out: Tensor, at: int = index) -> None:
                self.seen[at] = args[0], out

            self.handles.append(layer.full_attention.register_forward_hook(keep))

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()


def attention_losses(
    new: Student, batch: PackedBatch, seen: dict[int, tuple[Tensor, Tensor]]
) -> list[Tensor]:
    """Unexplained share of the old attention's output, one per layer that has a source."""
    model, config = new.qwen.model, new.qwen.config.text
    inputs = next(iter(seen.values()))[0]
    state = model.prepare(inputs, batch.position)
    segments = Segments(batch.segment, state["cos"], state["sin"])
    is_token = batch.segment >= 0
    losses = []
    for layer, source in zip(model.layers, SOURCES, strict=True):
        if source is None:
            continue
        assert isinstance(layer, DecoderLayer)
        x, wanted = seen[source]
        got = segments.join(segments.run(layer.mixer, segments.split(x), config))
        error = (got - wanted)[is_token].square().sum()
        losses.append(error / wanted[is_token].square().sum())
    return losses


def fit_attention(
    old: Student, new: Student, writer: Writer, minutes: float, size: int, lr: float
) -> None:
    """Train every attention towards the one that it replaces."""
    layers = [layer for layer in old.qwen.model.layers if isinstance(layer, DecoderLayer)]
    recorder = AttentionRecorder(layers)
    trained = [
        parameter
        for layer, source in zip(new.qwen.model.layers, SOURCES, strict=True)
        if isinstance(layer, DecoderLayer) and source is not None
        for parameter in layer.mixer.parameters()
    ]
    matrices = [p for p in trained if p.dim() == 2]
    rest = [p for p in trained if p.dim() != 2]
    tuners: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=lr, momentum=0.95, weight_decay=0.0,
                         adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]  # fmt: skip
    feed = tiny_data.batches(writer, "joint", 5, size, 8, family=OLD, drills=0.02, looks=0.2)
    began, said, step = time.time(), time.time(), 0
    while (elapsed := time.time() - began) < 60 * minutes:
        batch = next(feed)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            old.decode(batch, old.features(batch))
        seen = {k: (x.float(), y.float()) for k, (x, y) in recorder.seen.items()}
        for tuner in tuners:
            for group in tuner.param_groups:
                group["lr"] = learning_rate(lr, step, elapsed / (60 * minutes), warm_up=20)
        with torch.autocast("cpu", torch.bfloat16):
            losses = attention_losses(new, batch, seen)
        torch.autograd.backward(sum(losses, torch.zeros(())))
        for tuner in tuners:
            tuner.step()
            tuner.zero_grad(set_to_none=True)
        step += 1
        if time.time() - said > 15:
            said = time.time()
            print(f"{step} {elapsed:.0f}s", *(f"{float(x.detach()):.3f}" for x in losses),
                  flush=True)  # fmt: skip
    recorder.remove()


@torch.no_grad()
def mlp_statistics(old: Student, writer: Writer, batches: int) -> list[LayerStatistics]:
    """Statistics of every layer of the Qwen3-VL over conversations."""
    seen = [LayerStatistics(x) for x in old.qwen.model.layers if isinstance(x, DecoderLayer)]
    feed = tiny_data.batches(writer, "joint", 6, 16, 6, family=OLD)
    for _ in range(batches):
        batch = next(feed)
        old.decode(batch, old.features(batch))
    for statistics in seen:
        statistics.remove()
    return seen


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--state", type=Path, required=True, help="written, for `--begin-with`")
    parser.add_argument("--source", type=Path, default=Path("model/tiny3"))
    parser.add_argument("--batches", type=int, default=16, help="for the MLPs")
    parser.add_argument("--minutes", type=float, default=8.0, help="training of attention")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=4e-3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    F.scaled_dot_product_attention = plain_attention  # type: ignore[assignment]
    fast_rule()
    tokenizer = Tokenizer.from_file(str(args.source / "tokenizer.json"))
    writer = Writer(tokenizer)
    old = Student(tokenizer, OLD)
    old.qwen.load_state_dict(load_model(args.source).float().state_dict())
    tiny_tokenizer.add_thinking(tokenizer)
    new = Student(tokenizer, NEW)
    transfer_rest(old, new)
    old_layers, new_layers = (
        [layer for layer in student.qwen.model.layers if isinstance(layer, DecoderLayer)]
        for student in (old, new)
    )
    transfer_layers(old_layers, new_layers, mlp_statistics(old, writer, args.batches))
    fit_attention(old, new, writer, args.minutes, args.batch, args.lr)
    args.state.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": new.state_dict(), "stage": "joint"}, args.state)


if __name__ == "__main__":
    main()
