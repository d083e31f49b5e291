r"""Train the built-in model: a true Qwen2.5-VL of 7 million parameters, from nothing, on drawings.

What is hard for a model this small is taught first, and alone:

``vision``   the tower learns which glyph, shape and colour lies in each patch, as an orthogonal
             code in the decoder's own space;
``drill``    the decoder learns that a letter belongs to the word behind it;
``decoder``  the decoder learns the questions, reading the true codes instead of pictures;
``joint``    both are put together and trained on, the code as an auxiliary loss.

``vision`` and ``drill`` + ``decoder`` do not need each other and can run side by side. Every stage
writes its state and goes on from it, so it may be run in pieces:

    python tools/train_tiny.py vision  --state state/vision.pt  --minutes 30
    python tools/train_tiny.py drill   --state state/decoder.pt --minutes 8
    python tools/train_tiny.py decoder --state state/decoder.pt --minutes 40
    python tools/train_tiny.py joint   --state state/joint.pt --minutes 90 \\
        --start state/vision.pt state/decoder.pt
    python tools/train_tiny.py export  --state state/joint.pt --out model/tiny
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tiny_data
import tiny_tokenizer
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny_data import LABELS, PackedBatch
from tokenizers import Tokenizer
from torch import Tensor, nn

from vlpress.calib.draw import INKS
from vlpress.calib.glyphs import GLYPHS
from vlpress.calib.phrases import CHINESE
from vlpress.model.config import ModelConfig
from vlpress.model.qwen_vl import QwenVL

HIDDEN = 256
FLAG_LAYER = 3  # the decoder layer after which right options can be told from wrong ones
PARTS = (len(GLYPHS), len(tiny_data.MARKS), len(INKS), 2)  # groups of labels in a patch
MUON = 1.0  # learning rate of Muon, which moves a matrix by 0.2 x rate an element, over AdamW's
SHARPNESS = 6.0  # scale of code values as logits of the auxiliary loss


def config_dict(tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json in the hub's own (flat) form."""
    ids = {name: tokenizer.token_to_id(name) for name in tiny_tokenizer.SPECIAL}
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": 768,
        "max_position_embeddings": 8192,
        "max_window_layers": 5,
        "num_attention_heads": 4,
        "num_hidden_layers": 5,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000.0,
        # Width gets the lowest frequencies of all: with the usual third of so few pairs, a model
        # that sees four columns could not tell one from the next.
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 4, 26]},
        "sliding_window": 8192,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": tiny_tokenizer.VOCAB_SIZE,
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 4,
            "hidden_act": "silu",
            "hidden_size": 192,
            "intermediate_size": 516,
            "num_heads": 4,
            "in_chans": 3,
            "out_hidden_size": HIDDEN,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 56,
            "fullatt_block_indexes": [1, 3],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
    }


class Student(nn.Module):
    """The model with what only training needs: the code book and the option head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.qwen = QwenVL(config)
        self.flag_head = nn.Linear(HIDDEN, 1)
        basis = torch.linalg.qr(
            torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(7))
        )[0]
        self.register_buffer("codes", basis[: 4 * LABELS].clone())
        self.register_buffer("constant", basis[4 * LABELS].clone())
        self.codes: Tensor
        self.constant: Tensor
        self._initialize()

    def _initialize(self) -> None:
        generator = torch.Generator().manual_seed(11)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                fan_in = p[0].numel()
                std = 1 / 16 if "embed_tokens" in name else 0.7 / math.sqrt(fan_in)
                if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight")):
                    std *= 0.5
                nn.init.normal_(p, std=std, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    @torch.no_grad()
    def align_embeddings(self, tokenizer: Tokenizer) -> None:
        """Give the words for what a patch can show the direction of its code.

        Copying from a picture and matching a word with a picture then are one operation for all
        words, not one to be learned for each.
        """
        names = (*GLYPHS, *tiny_data.MARKS, *INKS)
        codes = self.codes.view(4, LABELS, HIDDEN).sum(0)
        table = self.qwen.model.embed_tokens.weight
        for name, code in zip(names, codes, strict=False):
            for text in (name, f" {name}", CHINESE.get(name, name)):
                ids = tokenizer.encode(text).ids
                if len(ids) == 1:
                    table[ids[0]] = 0.7 * table[ids[0]] + 0.5 * code

    def true_features(self, labels: Tensor, noise: float) -> Tensor:
        """The code of the truth, ``[tokens, HIDDEN]``, with some of it blurred or lost."""
        if noise:
            keep = torch.rand(labels.shape[0], 1, device=labels.device) > 0.005
            labels = labels * keep * (1 + 0.15 * torch.randn_like(labels))
            labels = labels + noise * torch.randn_like(labels)
        return labels @ self.codes + self.constant

    def features(self, batch: PackedBatch) -> Tensor:
        """What the vision tower sees, ``[tokens, HIDDEN]``."""
        out: Tensor = self.qwen.visual(batch.patches, batch.grid)
        return out

    def decode(self, batch: PackedBatch, features: Tensor) -> tuple[Tensor, Tensor]:
        """Final hidden states ``[B, T, HIDDEN]`` and those after ``FLAG_LAYER``."""
        model = self.qwen.model
        embeds = model.embed_tokens(batch.ids)
        where = batch.ids == self.qwen.config.image_token_id
        if features.shape[0]:
            embeds = embeds.masked_scatter(where[..., None], features.to(embeds.dtype))
        state = model.prepare(embeds, batch.position, batch.mask())
        hidden, middle = state["hidden"], embeds
        for i, layer in enumerate(model.layers):
            hidden = layer(hidden, state["cos"], state["sin"], state["mask"])
            if i == FLAG_LAYER:
                middle = hidden
        return model.finish(hidden), middle


def vision_loss(
    student: Student, features: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of the code's groups plus its squared error."""
    found = (features - student.constant) @ student.codes.t()
    error = F.mse_loss(found, labels) * LABELS
    found, labels = found.view(-1, LABELS), labels.view(-1, LABELS)
    loss, report = error, {"code": float(error.detach())}
    names = ("glyph", "shape", "colour")
    for name, scores, truth in zip(
        names, found.split(PARTS, 1), labels.split(PARTS, 1), strict=False
    ):
        none = torch.full_like(scores[:, :1], 0.5)
        logits = SHARPNESS * torch.cat((none, scores), 1)
        target = torch.where(truth.sum(1) > 0, truth.argmax(1) + 1, 0)
        weight = torch.ones(logits.shape[1], device=logits.device)
        weight[0] = 0.2
        loss = loss + F.cross_entropy(logits, target, weight)
        hit = (logits.argmax(1) == target)[target > 0]
        report[name] = float(hit.float().mean())
    return loss, report


def decoder_loss(
    student: Student, hidden: Tensor, middle: Tensor, batch: PackedBatch
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of the answers, and of telling right options from wrong ones."""
    asked = batch.target >= 0
    scores = student.qwen.logits(hidden[asked])
    target, kind = batch.target[asked], batch.kind[asked]
    each = F.cross_entropy(scores, target, reduction="none")
    weight = torch.where(kind == 1, 2.0, 1.0)
    loss = (each * weight).sum() / weight.sum()
    right = (scores.argmax(1) == target).float()
    report = {"loss": float(loss.detach())}
    is_end = target == batch.ids.new_tensor(END[0])
    for name, which in (("letter", 1), ("string", 2), ("other", 3)):
        chosen = right[(kind == which) & ~is_end]
        if len(chosen):
            report[name] = float(chosen.mean())
    options = batch.flag >= 0
    if options.any():
        flags = student.flag_head(middle[options].float()).squeeze(1)
        truth = batch.flag[options].float()
        extra = F.binary_cross_entropy_with_logits(flags.float(), truth)
        loss = loss + 0.5 * extra
        report["flag"] = float(((flags > 0) == (truth > 0)).float().mean())
    return loss, report


END = [0]  # id of <|im_end|>, set once the tokenizer is there


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Attention as two products and a softmax.

    On a CPU and for the short sequences here its backward pass takes a fifth of the fused one's.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if is_causal:
        attn_mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -1e4)
    return torch.softmax(scores, -1, dtype=scores.dtype) @ v


def step_loss(
    student: Student, batch: PackedBatch, stage: str, noise: float
) -> tuple[Tensor, dict[str, float]]:
    """Loss of one batch in one stage, with what to print."""
    if stage == "vision":
        return vision_loss(student, student.features(batch).float(), batch.labels)
    if stage == "joint" and len(batch.grid):
        features = student.features(batch).float()
        extra, seen = vision_loss(student, features, batch.labels)
    else:
        features, extra, seen = student.true_features(batch.labels, noise), None, {}
    hidden, middle = student.decode(batch, features)
    loss, report = decoder_loss(student, hidden, middle, batch)
    if extra is not None:
        loss = loss + 0.5 * extra
    return loss, {**report, **seen}


def optimizers(student: Student, stage: str, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else."""
    matrices, rest = [], []
    for name, p in student.named_parameters():
        is_vision = ".visual." in name
        if (stage == "vision") != is_vision and stage != "joint":
            continue
        inside = p.dim() == 2 and ("layers." in name or "blocks." in name or "merger." in name)
        (matrices if inside else rest).append(p)
    adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    muon = torch.optim.Muon(
        matrices, lr=MUON * lr, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
    )
    return [adam, muon]


def learning_rate(peak: float, step: int, share: float | None) -> float:
    """Warm-up over 100 steps; ``share`` (of the time, 0 to 1) falls linearly from 40 % on."""
    rate = peak * min(1.0, (step + 1) / 100)
    if share is not None and share > 0.4:
        rate *= max(0.02, (1 - share) / 0.6)
    return rate


def load_states(student: Student, paths: list[Path], stage: str) -> None:
    """Take the vision tower from a vision state and the decoder from a decoder state."""
    for path in paths:
        state = torch.load(path, map_location="cpu", weights_only=True)
        keep = state["model"]
        if state["stage"] == "vision":
            keep = {k: v for k, v in keep.items() if ".visual." in k}
        elif state["stage"] != "joint":
            keep = {k: v for k, v in keep.items() if ".visual." not in k}
        student.load_state_dict(keep, strict=False)


def stream(args: argparse.Namespace, writer: tiny_data.Writer, step: int) -> Iterator[PackedBatch]:
    """Batches from parallel workers, each with a seed of its own."""

    class Feed(torch.utils.data.IterableDataset[PackedBatch]):
        def __iter__(self) -> Iterator[PackedBatch]:
            torch.set_num_threads(1)
            info = torch.utils.data.get_worker_info()
            worker = info.id if info else 0
            seed = args.seed * 1_000_003 + step * 101 + worker
            return tiny_data.batches(
                writer, args.stage, seed, args.batch, args.questions, drills=args.drills
            )

    return iter(torch.utils.data.DataLoader(Feed(), batch_size=None, num_workers=args.workers))


def train(args: argparse.Namespace) -> None:
    """Run one stage for ``--minutes``, or until the sum of all its pieces is ``--total``."""
    device = torch.device(args.device)
    if device.type == "cpu":
        F.scaled_dot_product_attention = plain_attention
    tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    END[0] = tokenizer.token_to_id("<|im_end|>")
    student = Student(ModelConfig.from_dict(config_dict(tokenizer))).to(device)
    tuners = optimizers(student, args.stage, args.lr)
    step, spent = 0, 0.0
    if args.state.exists():
        state = torch.load(args.state, map_location="cpu", weights_only=True)
        student.load_state_dict(state["model"])
        if state["stage"] == args.stage:
            for tuner, saved in zip(tuners, state["optimizers"], strict=True):
                tuner.load_state_dict(saved)
            step, spent = state["step"], state["spent"]
    else:
        student.align_embeddings(tokenizer)
    if not args.state.exists() and args.start:
        load_states(student, args.start, args.stage)
    began, said, report_sum = time.time(), time.time(), {}
    feed = stream(args, tiny_data.Writer(tokenizer, args.closed), step)
    saved_at = time.time()
    while time.time() - began < args.minutes * 60:
        batch = next(feed).to(device)
        share = (spent + time.time() - began) / (args.total * 60) if args.total else None
        if share is not None and share >= 1:
            break
        for tuner in tuners:
            for group in tuner.param_groups:
                factor = MUON if isinstance(tuner, torch.optim.Muon) else 1.0
                group["lr"] = factor * learning_rate(args.lr, step, share)
        with torch.autocast(device.type, torch.bfloat16):
            loss, report = step_loss(student, batch, args.stage, args.noise)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for tuner in tuners:
            tuner.step()
            tuner.zero_grad(set_to_none=True)
        step += 1
        for key, value in report.items():
            if value == value:
                total, count = report_sum.get(key, (0.0, 0))
                report_sum[key] = (total + value, count + 1)
        if time.time() - said > args.say:
            said = time.time()
            means = " ".join(f"{k} {t / n:.3f}" for k, (t, n) in report_sum.items())
            print(f"{args.stage} {step} {spent + said - began:.0f}s {means}", flush=True)
            report_sum = {}
        if time.time() - saved_at > 120:
            saved_at = time.time()
            save_state(args, student, tuners, step, spent + saved_at - began)
    save_state(args, student, tuners, step, spent + time.time() - began)


def save_state(
    args: argparse.Namespace, student: Student, tuners: list[torch.optim.Optimizer], step: int,
    spent: float,
) -> None:  # fmt: skip
    """Write the state so that a kill at any moment leaves the old one or the new one."""
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
        name.removeprefix("qwen."): value.to(torch.bfloat16).contiguous()
        for name, value in state.items()
        if name.startswith("qwen.")
    }
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.out / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps(config_dict(tokenizer), indent=2) + "\n"
    (args.out / "config.json").write_text(text)
    for source in args.tokenizer.iterdir():
        if source.suffix in (".json", ".jinja") and source.resolve().parent != args.out.resolve():
            shutil.copyfile(source, args.out / source.name)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("vision", "drill", "decoder", "joint", "export"))
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--start", type=Path, nargs="*", default=[])
    parser.add_argument("--tokenizer", type=Path, default=Path("model/tiny"))
    parser.add_argument("--out", type=Path, default=Path("model/tiny"))
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--total", type=float, help="minutes of the stage in all, for the rate")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--questions", type=int, default=6)
    parser.add_argument("--closed", type=float, default=1.0, help="factor: multiple choice")
    parser.add_argument("--drills", type=float, default=0.05, help="share of drills")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--noise", type=float, default=0.1)
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
