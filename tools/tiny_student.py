"""Training form of a built-in model: auxiliary heads and losses."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny_configs import CONFIGS, HIDDEN
from tiny_data import PackedBatch
from tiny_draft import draft_loss
from tiny_segments import Segments
from tiny_truth import GROUPS, LABELS, MARKS, PLACED, THINGS
from tokenizers import Tokenizer
from torch import Tensor, nn

from vlpress.model.config import ModelConfig
from vlpress.model.features import VISUAL_ROWS, Features
from vlpress.model.mtp import MultiTokenPredictor
from vlpress.model.qwen_vl import QwenVL
from vlpress.synthetic.canvas import INKS
from vlpress.synthetic.glyphs import GLYPHS
from vlpress.synthetic.phrases import CHINESE

FLAG_LAYER = 3  # the decoder layer whose output classifies options as correct or wrong
PARTS = list(GROUPS.values())  # groups of labels in a patch
OUTPUTS = ("o_proj.weight", "down_proj.weight", "attn.proj.weight", "mlp.linear_fc2.weight")
SHARPNESS = 6.0  # scale of code values as logits of the auxiliary loss


class Student(nn.Module):
    """The model with its training-only parts: the code book and the option head."""

    def __init__(self, tokenizer: Tokenizer, family: str) -> None:
        super().__init__()
        config = ModelConfig.from_dict(CONFIGS[family](tokenizer))
        self.end_of_turn: int = tokenizer.encode("<|im_end|>").ids[0]
        self.qwen = QwenVL(config)
        self.mtp = MultiTokenPredictor(config.text) if config.text.mtp_layers else None
        self.flag_head = nn.Linear(HIDDEN, 1)
        generator = torch.Generator().manual_seed(7)
        # Labels of what an object is get orthogonal codes, which almost fill the space, as four
        # patches make a token. The few other labels are only nearly orthogonal to them.
        basis = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, generator=generator))[0]
        things = basis[: 4 * THINGS].view(4, THINGS, HIDDEN)
        others = [
            F.normalize(torch.randn(4, count, HIDDEN, generator=generator), dim=2)
            for count in (PLACED, GROUPS["blur"], GROUPS["role"])
        ]
        codes = torch.cat((things, *others), dim=1).flatten(0, 1)
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("constant", basis[4 * THINGS].clone(), persistent=False)
        self.codes: Tensor
        self.constant: Tensor
        self._initialize()

    def _initialize(self) -> None:
        generator = torch.Generator().manual_seed(11)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                fan_in = p[0].numel()
                std = 1 / 16 if "embed_tokens" in name else 0.7 / math.sqrt(fan_in)
                if name.endswith(OUTPUTS):
                    std *= 0.5
                if "deepstack" in name and name.endswith("linear_fc2.weight"):
                    std = 0.0  # trained with the decoder only, which has not seen such features
                nn.init.normal_(p, std=std, generator=generator)
                if name.endswith("conv1d.weight"):
                    with torch.no_grad():
                        p[..., -1] += 1.0  # begin with the token itself
            elif name.endswith("dt_bias"):
                # Steps of 0.001 to 0.1, as in Mamba (arXiv 2312.00752, section 3.6): the state
                # begins to forget after ten to a thousand tokens.
                steps = torch.logspace(-3, -1, len(p))
                p.data.copy_(steps.expm1().log())
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def load_checkpoint(self, folder: Path) -> None:
        """Load the weights of a checkpoint of this family with the names of the modules."""
        weights = load_file(folder / "model.safetensors")
        self.load_state_dict({f"qwen.{name}": w for name, w in weights.items()}, strict=False)

    @torch.no_grad()
    def align_embeddings(self, tokenizer: Tokenizer) -> None:
        """Initialize the embeddings of words for labels with the direction of the label's code.

        Copying from an image and matching a word with an image are then one operation for all
        words, instead of one to learn per word.
        """
        names = (*GLYPHS, *MARKS, *INKS)  # the first groups of labels
        codes = self.codes.view(4, LABELS, HIDDEN).sum(0)
        table = self.qwen.model.embed_tokens.weight
        for name, code in zip(names, codes, strict=False):
            for text in (name, f" {name}", CHINESE.get(name, name)):
                ids = tokenizer.encode(text).ids
                if len(ids) == 1:
                    table[ids[0]] = 0.7 * table[ids[0]] + 0.5 * code

    def true_features(self, labels: Tensor, noise: float) -> Tensor:
        """Codes of the labels, `[tokens, HIDDEN]`, partly with noise or dropped."""
        if noise:
            keep = torch.rand(labels.shape[0], 1, device=labels.device) > 0.005
            labels = labels * keep * (1 + 0.15 * torch.randn_like(labels))
            labels = labels + noise * torch.randn_like(labels)
        return labels @ self.codes + self.constant

    def features(self, batch: PackedBatch) -> Features:
        """Outputs of the vision tower, `[tokens, HIDDEN]` each."""
        out: Features = self.qwen.visual(batch.patches, batch.grid)
        return out

    def decode(self, batch: PackedBatch, features: Features) -> tuple[Tensor, Tensor]:
        """Final hidden states `[B, T, HIDDEN]`, and those after `FLAG_LAYER`.

        With linear attention the latter are the embeddings.
        """
        model = self.qwen.model
        embeds = model.embed_tokens(batch.ids)
        where = batch.ids == self.qwen.config.image_token_id
        added = {key: value for key, value in features.items() if key != "hidden"}
        if len(values := features["hidden"]):
            embeds = embeds.masked_scatter(where[..., None], values.to(embeds.dtype))
        if self.qwen.config.text.linear_attention is not None:
            return self._decode_segments(embeds, batch), embeds
        if added:
            added[VISUAL_ROWS] = torch.nonzero(where.flatten())[:, 0]
        state = model.prepare(embeds, batch.position, batch.mask(), added=added)
        middle = embeds
        for index, following in enumerate(model.layer_states(state)):
            state = following
            if index == FLAG_LAYER:
                middle = state["hidden"]
        return model.finish(state), middle

    def _decode_segments(self, embeds: Tensor, batch: PackedBatch) -> Tensor:
        """Final hidden states of a decoder with linear attention, `[B, T, HIDDEN]`."""
        model, config = self.qwen.model, self.qwen.config.text
        state = model.prepare(embeds, batch.position)
        segments = Segments(batch.segment, state["cos"], state["sin"])
        parts = segments.split(embeds)
        for layer in model.layers:
            parts = segments.run(layer, parts, config)
        out: Tensor = model.norm(segments.join(parts))
        return out


def vision_loss(
    student: Student, features: Tensor, labels: Tensor, target: Tensor | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of the code's groups plus the squared error, of the code or of `target`."""
    wanted = labels @ student.codes + student.constant if target is None else target
    error = F.mse_loss(features, wanted) * LABELS
    similarity = (features - student.constant) @ student.codes.t()
    similarity, labels = similarity.view(-1, LABELS), labels.view(-1, LABELS)
    loss, report = error, {"code": float(error.detach())}
    for name, scores, truth in zip(
        GROUPS, torch.split(similarity, PARTS, 1), torch.split(labels, PARTS, 1), strict=False
    ):
        none = torch.full_like(scores[:, :1], 0.5)
        logits = SHARPNESS * torch.cat((none, scores), 1)
        label = torch.where(truth.sum(1) > 0, truth.argmax(1) + 1, 0)
        weight = torch.ones(logits.shape[1], device=logits.device)
        weight[0] = 0.2
        loss = loss + F.cross_entropy(logits, label, weight)
        hit = (logits.argmax(1) == label)[label > 0]
        report[name] = float(hit.float().mean())
    return loss, report


def decoder_loss(
    student: Student, hidden: Tensor, middle: Tensor, batch: PackedBatch
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of the answers, and of classifying options as correct or wrong.

    With linear attention only the former: a reasoning has found the answer before it is compared.
    """
    is_answer = batch.target >= 0
    scores = student.qwen.logits(hidden[is_answer])
    target, kind = batch.target[is_answer], batch.kind[is_answer]
    each = F.cross_entropy(scores, target, reduction="none")
    weight = torch.where(kind == 1, 2.0, 1.0)
    loss = (each * weight).sum() / weight.sum()
    right = (scores.argmax(1) == target).float()
    report = {"loss": float(loss.detach())}
    is_end = target == student.end_of_turn
    for name, which in (("letter", 1), ("string", 2), ("other", 3), ("think", 4)):
        chosen = right[(kind == which) & ~is_end]
        if len(chosen):
            report[name] = float(chosen.mean())
    options = batch.flag >= 0
    if options.any() and student.qwen.config.text.linear_attention is None:
        flags = student.flag_head(middle[options].float()).squeeze(1)
        truth = batch.flag[options].float()
        extra = F.binary_cross_entropy_with_logits(flags.float(), truth)
        loss = loss + 0.5 * extra
        report["flag"] = float(((flags > 0) == (truth > 0)).float().mean())
    return loss, report


def step_loss(
    student: Student,
    batch: PackedBatch,
    stage: str,
    noise: float,
    taught: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Loss of one batch in one stage, and the numbers to print.

    Args:
        student: the model with its auxiliary parts.
        batch: conversations, or images in the `vision` stage.
        stage: see `train_tiny.py`.
        noise: standard deviation of noise on true codes.
        taught: features `[tokens, HIDDEN]` to learn in the `vision` stage; None for the code.
    """
    if stage == "vision":
        codes = student.features(batch)["hidden"].float()
        return vision_loss(student, codes, batch.labels, taught)
    hits: dict[str, float] = {}
    extra = None
    frozen = not next(student.qwen.visual.parameters()).requires_grad
    if stage == "draft":
        assert student.mtp is not None
        with torch.no_grad():
            nothing = {"hidden": batch.patches.new_zeros(0, HIDDEN)}
            seen = student.features(batch) if len(batch.grid) else nothing
            hidden, embeds = student.decode(batch, seen)
        return draft_loss(student.mtp, student.qwen, embeds, hidden, batch)
    if stage == "joint" and len(batch.grid) and frozen:
        with torch.no_grad():
            features = student.features(batch)
    elif stage == "joint" and len(batch.grid):
        features = {key: value.float() for key, value in student.features(batch).items()}
        extra, hits = vision_loss(student, features["hidden"], batch.labels)
    else:
        features = {"hidden": student.true_features(batch.labels, noise)}
    hidden, middle = student.decode(batch, features)
    loss, report = decoder_loss(student, hidden, middle, batch)
    if extra is not None:
        loss = loss + 0.5 * extra
    return loss, {**report, **hits}
