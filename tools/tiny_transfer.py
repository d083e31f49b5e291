r"""First weights of the built-in Qwen3-VL, taken over from the built-in Qwen2.5-VL.

Both have the same tokenizer, hidden size, number of layers and training images. Training from
scratch takes hours, most of them until the decoder looks at an image at all; from these weights the
`joint` stage begins with a model that answers most questions. DeepStack mergers begin at zero.

    python tools/tiny_transfer.py --state state/begin.pt
    python tools/train_tiny.py joint --family qwen3_vl --state state/joint.pt \\
        --begin-with state/begin.pt --minutes 40 --total 40
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import tiny_data
import torch
import torch.nn.functional as F
from tiny_student import Student
from tiny_talk import Conversation, Writer
from tokenizers import Tokenizer
from train_tiny import load_states, plain_attention
from transfer_decoder import LayerStatistics, transfer_decoder
from transfer_tower import (
    Basis,
    Example,
    begin_block,
    find_basis,
    fit_block,
    teach,
    transfer_embedding,
    transfer_merger,
)

from vlpress.model.deepstack_tower import DeepstackTower
from vlpress.model.text import DecoderLayer
from vlpress.model.vision import PatchMerger, VisionBlock, VisionTower
from vlpress.synthetic import scenes

OLD, NEW = "qwen2_5_vl", "qwen3_vl"
IMAGES, CONVERSATIONS = 32, 16  # of one batch
BASIS_EXAMPLES, MERGER_EXAMPLES = 20, 40  # enough for second moments of 192 and 960 columns


def image_examples(tower: VisionTower, seed: int, count: int) -> list[Example]:
    """`count` batches of images with the old tower's states."""
    rng = scenes.stream_random(scenes.Stream.TRAINING, seed)
    examples = []
    for _ in range(count):
        images = tiny_data.random_images(rng, IMAGES)
        unasked = tiny_data.unasked(images)
        examples.append(
            teach(tower, tiny_data.pack([unasked], OLD), tiny_data.pack([unasked], NEW))
        )
    return examples


def conversations(writer: Writer, seed: int, count: int) -> list[Conversation]:
    """Conversations of the joint stage."""
    rng = scenes.stream_random(scenes.Stream.TRAINING, seed)
    out = []
    for _ in range(count):
        skill = tiny_data.random_skill(rng)
        out.append(writer.conversation(tiny_data.draw(rng, skill), rng, 6, (skill,)))
    return out


@torch.no_grad()
def watch_decoder(old: Student, talks: list[Conversation]) -> list[LayerStatistics]:
    """Statistics of every layer of the old decoder over conversations."""
    seen = []
    for layer in old.qwen.model.layers:
        assert isinstance(layer, DecoderLayer)
        seen.append(LayerStatistics(layer))
    for group in tiny_data.by_length(talks, CONVERSATIONS * tiny_data.TOKENS):
        batch = tiny_data.pack(group, OLD)
        old.decode(batch, old.features(batch))
    for statistics in seen:
        statistics.remove()
    return seen


def fit_tower(
    old: VisionTower,
    new: DeepstackTower,
    basis: Basis,
    examples: Sequence[Example],
    steps: int,
    processes: int,
) -> None:
    """Take over the whole tower; blocks are independent and are trained in several processes."""
    transfer_embedding(old, new, basis)
    for before, after in zip(old.blocks, new.blocks, strict=True):
        assert isinstance(before, VisionBlock)
        assert isinstance(after, VisionBlock)
        begin_block(before, after, basis)
    # fork: the examples are shared instead of copied to every process.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
        futures = [
            pool.submit(fit_block, new, index, examples, basis, steps)
            for index in range(len(new.blocks))
        ]
        for block, future in zip(new.blocks, futures, strict=True):
            block.load_state_dict(future.result())
    assert isinstance(old.merger, PatchMerger)
    transfer_merger(old.merger, new, examples[:MERGER_EXAMPLES], basis)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--state", type=Path, required=True, help="written, for `--begin-with`")
    parser.add_argument("--source", type=Path, default=Path("model/tiny"))
    parser.add_argument("--batches", type=int, default=110, help="of 32 images for the tower")
    parser.add_argument("--steps", type=int, default=1300, help="training of each block")
    parser.add_argument("--conversations", type=int, default=256, help="for the decoder")
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)  # fork after torch's own threads have started would hang
    F.scaled_dot_product_attention = plain_attention  # type: ignore[assignment]
    tokenizer = Tokenizer.from_file(str(args.source / "tokenizer.json"))
    old, new = Student(tokenizer, OLD), Student(tokenizer, NEW)
    load_states(old, [args.source], "joint")
    old_tower, tower = old.qwen.visual, new.qwen.visual
    assert isinstance(old_tower, VisionTower)
    assert isinstance(tower, DeepstackTower)
    examples = image_examples(old_tower, args.seed, args.batches)
    basis = find_basis(examples[:BASIS_EXAMPLES], tower.config.hidden_size)
    fit_tower(old_tower, tower, basis, examples, args.steps, args.processes)
    talks = conversations(Writer(tokenizer, 1.0), args.seed + 1, args.conversations)
    transfer_decoder(old.qwen.model, new.qwen.model, watch_decoder(old, talks))
    args.state.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": new.state_dict(), "stage": "joint"}, args.state)


if __name__ == "__main__":
    main()
