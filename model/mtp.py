"""The module for multi-token prediction of Qwen3.5, which drafts the token after the next.

Its input at token t is the hidden state of the decoder there, after the final norm, and the
embedding of token t + 1; its output, through the model's own head, predicts token t + 2. Both
inputs are normalized, joined in the order embedding, hidden state, and projected to the hidden
size; one decoder layer with full attention follows, at the position of token t. Embeddings of image
and video tokens are their features. The architecture is that of "DeepSeek-V3 Technical Report"
(arXiv 2412.19437, section 2.2), whose order is the other one and whose rows have the position of
token t + 1; order, position and hidden state here are those that vLLM serves these checkpoints
with (`qwen3_5_mtp.py`, and the drafts of its module for EAGLE).

Tensors have the prefix `mtp.`. transformers and quantization ignore them; checkpoints carry them
along.

Letters in shapes: B batch, T tokens, H hidden size, R rotary pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .cache import KVCache
from .checkpoint import CheckpointReader
from .config import TextConfig
from .expert_linear import expert_layers
from .processing.inputs import Batch
from .qwen_vl import QwenVL
from .text import DecoderLayer, RMSNorm

PREFIX = "mtp."


class MultiTokenPredictor(nn.Module):
    """The module; attribute names equal the checkpoint's after `mtp.`.

    Args:
        config: of the decoder.

    Raises:
        ValueError: the model has no such module.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        if not config.mtp_layers:
            raise ValueError(
                "mtp_num_hidden_layers is 0: the model has no multi-token prediction; take a "
                "checkpoint with 1 or more"
            )
        size, eps, offset = config.hidden_size, config.rms_norm_eps, config.norm_offset
        layers = config.mtp_layers
        # Without types all layers have full attention.
        full = replace(config, num_hidden_layers=layers, layer_types=())
        self.config = full
        self.pre_fc_norm_embedding = RMSNorm(size, eps, offset)
        self.pre_fc_norm_hidden = RMSNorm(size, eps, offset)
        self.fc = nn.Linear(2 * size, size, bias=False)
        self.layers = nn.ModuleList(DecoderLayer(full, index) for index in range(layers))
        self.norm = RMSNorm(size, eps, offset)

    def joined(self, embeds: Tensor, hidden: Tensor) -> Tensor:
        """Compute the input of the first layer, `[B, T, H]`.

        Args:
            embeds: `[B, T, H]`, at row t the embedding of token t + 1.
            hidden: `[B, T, H]`, at row t the final hidden state of token t.
        """
        parts = self.pre_fc_norm_embedding(embeds), self.pre_fc_norm_hidden(hidden)
        out: Tensor = self.fc(torch.cat(parts, -1))
        return out

    def forward(
        self,
        embeds: Tensor,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Compute the input of the head, `[B, T, H]`. Differentiable.

        Args:
            embeds: `[B, T, H]`, at row t the embedding of token t + 1.
            hidden: `[B, T, H]`, at row t the final hidden state of token t.
            cos: `[B, T, R]` of the positions of tokens t, from `TextModel.prepare`.
            sin: `[B, T, R]`, likewise.
            mask: see `DecoderLayer.forward`.
            cache: of this module's own layers, see `DecoderLayer.forward`.
        """
        state = self.joined(embeds, hidden)
        for layer in self.layers:
            state = layer(state, cos, sin, mask, cache)
        out: Tensor = self.norm(state)
        return out


def draft_states(
    model: QwenVL, predictor: MultiTokenPredictor, batch: Batch, hidden: Tensor
) -> Tensor:
    """Compute the input of the head for the drafts of whole sequences.

    Args:
        model: gives the rotary positions.
        predictor: the module of this model.
        batch: of `QwenVL.embed`; at least two columns.
        hidden: `[B, T, H]`, the decoder's output for this batch, after the final norm.

    Returns:
        `[B, T - 1, H]`; with the head, row t predicts token t + 2 as if every token had been
        accepted. Rows of padding have no meaning.
    """
    state = model.model.prepare(batch.embeds, batch.position_ids, batch.attention_mask())
    mask = state.get("mask")
    out: Tensor = predictor(
        batch.embeds[:, 1:],
        hidden[:, :-1],
        state["cos"][:, :-1],
        state["sin"][:, :-1],
        None if mask is None else mask[:, :, :-1, :-1],
    )
    return out


def draft_logits(
    model: QwenVL, predictor: MultiTokenPredictor, batch: Batch, hidden: Tensor
) -> Tensor:
    """Compute the logits of drafts, float32 `[B, T - 1, vocab]`; see `draft_states`."""
    return model.logits(draft_states(model, predictor, batch, hidden))


def load_predictor(
    folder: str | Path, model: QwenVL, dequantized: Mapping[str, Tensor] | None = None
) -> MultiTokenPredictor:
    """Load the module of a checkpoint, in the dtype and on the device of the model.

    Args:
        folder: the checkpoint.
        model: the model of the checkpoint.
        dequantized: weights of layers that the checkpoint holds quantized, by name of the layer.

    Raises:
        ValueError: the checkpoint has no such module, or not its tensors.
    """
    config = model.config.text
    with torch.device("meta"):
        predictor = MultiTokenPredictor(config)
    reader = CheckpointReader(folder)
    dequantized = dequantized or {}
    values = {f"{name}.weight": weight for name, weight in dequantized.items()}
    values |= {
        name: reader.tensor(name)
        for name in reader.names()
        if name.startswith(PREFIX) and name.rpartition(".")[0] not in dequantized
    }
    for tensor, layers in expert_layers(predictor, PREFIX.rstrip(".")).items():
        if all(f"{layer}.weight" in values for layer in layers):  # each expert is stored apart
            shape = predictor.get_parameter(tensor.removeprefix(PREFIX)).shape
            values[tensor] = torch.empty(shape)
            for path, layer in layers.items():
                layer.slice.view(values[tensor]).copy_(values.pop(f"{path}.weight"))
    stored = {
        name.removeprefix(PREFIX): value.to(model.device, model.dtype)
        for name, value in values.items()
    }
    expected = {name: tuple(p.shape) for name, p in predictor.state_dict().items()}
    for name in sorted(expected.keys() | stored.keys()):
        found = tuple(stored[name].shape) if name in stored else None
        if found != expected.get(name):
            raise ValueError(
                f"{folder}: {PREFIX}{name} has the shape {found or 'none'}, expected "
                f"{expected.get(name, 'none')}; take the files of the original checkpoint"
            )
    predictor.load_state_dict(stored, assign=True)
    return predictor.eval()
