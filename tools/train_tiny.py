r"""Train a built-in model: a Qwen2.5-VL, Qwen3-VL or Qwen3.5 in small, on synthetic images.

The difficult parts for a model of this size are taught first, and separately:

`vision`   the tower learns the glyph, shape and colour of each patch, as an orthogonal code in the
           decoder's embedding space;
`drill`    the decoder learns that a letter belongs to the word after it;
`look`     the decoder learns to look up the true codes of an image, from short cues;
`decoder`  the decoder learns the questions, with the true codes in place of images;
`joint`    both are combined and trained further, with the code as an auxiliary loss;
`draft`    the module for multi-token prediction learns, on the frozen model.

`vision` and `drill` + `decoder` are independent and can run in parallel. Every stage stores its
state and resumes from it, so that it can run in pieces, and under `torchrun` with several ranks (on
a CPU, one thread per rank was about 1.5 times as fast as two threads in one process):

    python tools/train_tiny.py vision  --state state/vision.pt  --minutes 30
    python tools/train_tiny.py drill   --state state/decoder.pt --minutes 8
    python tools/train_tiny.py decoder --state state/decoder.pt --minutes 40
    python tools/train_tiny.py joint   --state state/joint.pt --minutes 90 \\
        --begin-with state/vision.pt state/decoder.pt
    python tools/train_tiny.py export  --state state/joint.pt --out model/tiny

Without the states, `--begin-with model/tiny` continues from the shipped weights.
`tools/train_tiny.sh` lists the pieces in order. `--family qwen3_vl`, in every piece, trains a
Qwen3-VL on the same images; its DeepStack mergers start at zero and learn in `joint` alone. It can
begin with the weights of a Qwen2.5-VL (`tiny_transfer.py`, `tools/train_tiny3.sh`).
`--family qwen3_5` begins with those of a Qwen3-VL (`transfer_hybrid.py`, `tools/train_tiny3_5.sh`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import float32_muon
import tiny_data
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from teacher import Teacher
from tiny_configs import CONFIGS, PREPROCESSORS, stored_name
from tiny_data import PackedBatch
from tiny_draft import begin_predictor
from tiny_student import Student, step_loss
from tiny_talk import Writer
from tokenizers import Tokenizer
from torch import Tensor, nn

from vlpress.model import gated_delta, linear_attention

STAGES = ("vision", "drill", "look", "decoder", "joint", "draft")
MATRICES = ("layers.", "blocks.", ".merger.", "mtp.fc")  # parts of names
VISION_RATE = 0.5  # share of the decoder's learning rate in the joint stage


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Attention as two products and a softmax.

    On a CPU and for these short sequences, its backward pass is five times as fast as the fused
    one's.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if is_causal:
        attn_mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -1e4)
    return torch.softmax(scores, -1, dtype=scores.dtype) @ v


def fast_rule() -> None:
    """Run the gated delta rule in float32 under autocast, in chunks for questions of few tokens."""

    def rule(*args: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", enabled=False):
            q, k, v, g, beta, state = args
            return gated_delta.chunked_delta_rule(q, k, v, g, beta, state, chunk=32)

    vars(linear_attention)["chunked_delta_rule"] = rule


def optimizers(
    student: Student, stage: str, lr: float, *, frozen_tower: bool = False
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks and the merger, AdamW for everything else.

    In the `joint` stage the trained tower has a fraction of the decoder's learning rate, and none
    if it is frozen.
    """
    matrices: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    rest: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, p in student.named_parameters():
        is_vision = ".visual." in name
        is_trained = stage == "joint" or (stage == "vision") == is_vision
        if name.startswith("mtp.") or stage == "draft":
            is_trained = name.startswith("mtp.") and stage == "draft"
        p.requires_grad_(is_trained and not (is_vision and frozen_tower))
        inside = p.dim() == 2 and any(part in name for part in MATRICES)
        if p.requires_grad:
            (matrices if inside else rest)[is_vision].append(p)

    def groups(chosen: dict[bool, list[nn.Parameter]]) -> list[dict[str, Any]]:
        slow = VISION_RATE if stage == "joint" else 1.0
        scales = {True: slow, False: 1.0}
        return [{"params": ps, "scale": scales[v], "lr": lr} for v, ps in chosen.items() if ps]

    adam = torch.optim.AdamW(groups(rest), betas=(0.9, 0.98), weight_decay=0.0)
    muon = torch.optim.Muon(
        groups(matrices), momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
    )
    return [adam, muon]


def learning_rate(peak: float, step: int, share: float | None, warm_up: int = 100) -> float:
    """Learning rate: warm-up over some steps, then linear decay from 40 % of the time (`share`)."""
    rate = peak * min(1.0, (step + 1) / warm_up)
    if share is not None and share > 0.4:
        rate *= max(0.02, (1 - share) / 0.6)
    return rate


def load_states(student: Student, paths: list[Path], stage: str) -> None:
    """Load the tower from a vision state, the decoder from its state, both from a checkpoint."""
    for path in paths:
        if path.is_dir():
            student.load_checkpoint(path)
            continue
        state = torch.load(path, map_location="cpu", weights_only=True)
        keep = state["model"]
        if state["stage"] == "vision":
            keep = {k: v for k, v in keep.items() if ".visual." in k}
        elif state["stage"] not in ("joint", "draft"):
            keep = {k: v for k, v in keep.items() if ".visual." not in k}
        student.load_state_dict(keep, strict=False)


def stream(
    args: argparse.Namespace, writer: Writer, stage: str, size: int, step: int, rank: int
) -> Iterator[PackedBatch]:
    """Batches of `size` for a stage, from parallel workers with separate seeds."""

    class Feed(torch.utils.data.IterableDataset[PackedBatch]):
        def __iter__(self) -> Iterator[PackedBatch]:
            torch.set_num_threads(1)
            info = torch.utils.data.get_worker_info()
            worker = info.id if info else 0
            seed = args.seed * 1_000_003 + step * 101 + rank * 17 + worker
            return tiny_data.batches(
                writer,
                stage,
                seed,
                size,
                args.questions,
                family=args.family,
                drills=args.drills,
                looks=args.looks,
                focus=args.focus,
            )

    return iter(torch.utils.data.DataLoader(Feed(), batch_size=None, num_workers=args.workers))


@dataclass
class Clock:
    """Time of this piece of a stage and of its earlier pieces; rank 0 decides for all ranks."""

    piece: float  # limit of this piece in seconds
    total: float  # seconds of the whole stage; 0: no limit, and a constant rate
    spent: float = 0.0  # seconds of the earlier pieces
    began: float = field(default_factory=time.time)
    ended: bool = False

    @property
    def elapsed(self) -> float:
        """Seconds of the stage so far."""
        return self.spent + time.time() - self.began

    def tick(self) -> None:
        """Decide together with the other ranks whether the time is over."""
        here = torch.tensor([time.time() - self.began, self.elapsed])
        if dist.is_initialized():
            dist.broadcast(here, 0)
        self.ended = bool(here[0] > self.piece or (self.total and here[1] > self.total))
        self.share = float(here[1]) / self.total if self.total else None

    share: float | None = None


class Meter:
    """Means of the steps' numbers, printed every `pause` seconds."""

    def __init__(self, pause: float) -> None:
        self.pause = pause
        self.printed = time.time()
        self.sums: dict[str, tuple[float, int]] = {}

    def add(self, report: dict[str, float]) -> None:
        """Add one step's numbers; NaN stands for an empty mean and is ignored."""
        for key, value in report.items():
            if not math.isnan(value):
                total, count = self.sums.get(key, (0.0, 0))
                self.sums[key] = (total + value, count + 1)

    def say(self, label: str) -> None:
        """Print and reset the means if the interval is over."""
        if time.time() - self.printed > self.pause:
            means = " ".join(f"{k} {t / n:.3f}" for k, (t, n) in self.sums.items())
            print(f"{label} {means}", flush=True)
            self.printed, self.sums = time.time(), {}


def average_gradients(student: Student) -> None:
    """Average gradients over the ranks; a rank without images contributes zeros."""
    if not dist.is_initialized():
        return
    trained = [p for p in student.parameters() if p.requires_grad]
    flat = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained]
    )
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    sizes = [p.numel() for p in trained]
    for p, gradient in zip(trained, torch.split(flat, sizes), strict=True):
        p.grad = gradient.view_as(p)


def restore(
    args: argparse.Namespace,
    student: Student,
    tuners: list[torch.optim.Optimizer],
    tokenizer: Tokenizer,
) -> tuple[int, float]:
    """Resume from `--state` or start from `--begin-with`; returns step and seconds spent."""
    if not args.state.exists():
        student.align_embeddings(tokenizer)
        load_states(student, args.begin_with, args.stage)
        if args.stage == "draft" and student.mtp is not None:
            begin_predictor(student.mtp, student.qwen)
        return 0, 0.0
    state = torch.load(args.state, map_location="cpu", weights_only=True)
    student.load_state_dict(state["model"])
    if state["stage"] != args.stage:
        return 0, 0.0
    for tuner, saved in zip(tuners, state["optimizers"], strict=True):
        tuner.load_state_dict(saved)
    return state["step"], state["spent"]


def train(args: argparse.Namespace) -> None:
    """Run one stage for `--minutes`, or until the sum of its pieces is `--total`."""
    device = torch.device(args.device)
    in_bf16 = device.type != "cpu" or float32_muon.has_bf16_units()
    if not in_bf16:
        float32_muon.install()
    if device.type == "cpu":
        F.scaled_dot_product_attention = plain_attention  # type: ignore[assignment]
        fast_rule()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
    rank = dist.get_rank() if dist.is_initialized() else 0
    tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    student = Student(tokenizer, args.family).to(device)
    tuners = optimizers(student, args.stage, args.lr, frozen_tower=args.frozen_tower)
    step, spent = restore(args, student, tuners, tokenizer)
    teacher = Teacher(args.teacher, tokenizer, args.family) if args.teacher else None
    clock = Clock(args.minutes * 60, 60 * (args.total or 0), spent)
    meter, saved_at = Meter(args.say), time.time()
    writer = Writer(tokenizer, args.closed)
    feed = stream(args, writer, args.stage, args.batch, step, rank)
    images = stream(args, writer, "vision", args.images, step, rank) if args.images else None
    while True:
        clock.tick()
        if clock.ended:
            break
        batch = next(feed).to(device)
        for tuner in tuners:
            for group in tuner.param_groups:
                group["lr"] = group["scale"] * learning_rate(
                    args.lr, step, clock.share, args.warm_up
                )
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
            taught = teacher.features(batch) if teacher else None
            loss, report = step_loss(student, batch, args.stage, args.noise, taught)
            if images is not None:
                more, hits = step_loss(student, next(images).to(device), "vision", args.noise)
                loss, report = loss + 0.5 * more, {**report, **hits}
        torch.autograd.backward(loss)
        average_gradients(student)
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for tuner in tuners:
            tuner.step()
            tuner.zero_grad(set_to_none=True)
        step += 1
        meter.add(report)
        if rank == 0:
            meter.say(f"{args.stage} {step} {clock.elapsed:.0f}s")
            if time.time() - saved_at > 120:
                saved_at = time.time()
                save_state(args, student, tuners, step, clock.elapsed)
    if rank == 0:
        save_state(args, student, tuners, step, clock.elapsed)


def save_state(
    args: argparse.Namespace, student: Student, tuners: list[torch.optim.Optimizer], step: int,
    spent: float,
) -> None:  # fmt: skip
    """Write the state atomically."""
    args.state.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.state.with_suffix(".part")
    content = {
        "model": student.state_dict(),
        "optimizers": [t.state_dict() for t in tuners],
        "step": step,
        "spent": spent,
        "stage": args.stage,
    }
    torch.save(content, temporary)
    os.replace(temporary, args.state)


def export(args: argparse.Namespace) -> None:
    """Write the checkpoint folder: bf16 weights under the hub's names, and the side files."""
    tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    state = torch.load(args.state, map_location="cpu", weights_only=True)["model"]
    tensors = {
        stored_name(name.removeprefix("qwen."), args.family): value.to(torch.bfloat16).contiguous()
        for name, value in state.items()
        if name.startswith(("qwen.", "mtp."))
    }
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.out / "model.safetensors", metadata={"format": "pt"})
    written = {
        "config.json": CONFIGS[args.family](tokenizer),
        "preprocessor_config.json": PREPROCESSORS[args.family],
    }
    for name, content in written.items():
        (args.out / name).write_text(json.dumps(content, indent=2) + "\n")
    for source in args.tokenizer.iterdir():
        copied = source.suffix in (".json", ".jinja") and source.name not in written
        if copied and source.resolve().parent != args.out.resolve():
            shutil.copyfile(source, args.out / source.name)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=(*STAGES, "export"))
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--begin-with", type=Path, nargs="*", default=[])
    parser.add_argument("--tokenizer", type=Path, default=Path("model/tiny"))
    parser.add_argument("--out", type=Path, default=Path("model/tiny"))
    parser.add_argument("--family", choices=tuple(CONFIGS), default="qwen2_5_vl")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--total", type=float, help="minutes of the stage in all, for the rate")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--questions", type=int, default=6)
    parser.add_argument("--images", type=int, default=0,
                        help="of a `joint` batch besides those of its conversations")  # fmt: skip
    parser.add_argument("--frozen-tower", action="store_true",
                        help="train the decoder alone in `joint`")  # fmt: skip
    parser.add_argument("--closed", type=float, default=1.0, help="factor: multiple choice")
    parser.add_argument("--drills", type=float, default=0.05, help="share of drills")
    parser.add_argument("--looks", type=float, default=0.2, help="share of looking drills")
    parser.add_argument("--focus", nargs="*", default=[], choices=tuple(tiny_data.SHARES),
                        help="skills that half of the conversations are about")  # fmt: skip
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--warm-up", type=int, default=100, help="steps")
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--teacher", type=Path, help="Qwen2.5-VL whose features `vision` learns")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--say", type=float, default=20.0, help="seconds between lines")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    export(args) if args.stage == "export" else train(args)


if __name__ == "__main__":
    main()
