"""A second implementation of Qwen-VL of 2023, from its published formulas, for comparison.

No library runs the original any more: its code is for transformers of 2023. These functions take
the tensors of a checkpoint by their names in the file, in float64, and follow the paper (arXiv
2308.12966) and the published configuration step by step: one head at a time,
without batches and without a cache. They share no code with the package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Tensors = Mapping[str, Tensor]
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def layer_norm(x: Tensor, tensors: Tensors, name: str) -> Tensor:
    """Subtract the mean, divide by the standard deviation, scale and shift; eps 1e-6."""
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    scaled = centred / torch.sqrt(variance + 1e-6)
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide by the root of the mean square and scale."""
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def affine(x: Tensor, tensors: Tensors, name: str) -> Tensor:
    """Apply a linear layer, with its bias if it has one."""
    y = x @ tensors[f"{name}.weight"].T
    bias = tensors.get(f"{name}.bias")
    return y if bias is None else y + bias


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """One head of attention, `[queries, d]`."""
    scores = q @ k.T / math.sqrt(q.shape[1])
    weights = torch.exp(scores - scores.max())
    if causal:
        weights = weights.tril()
    return weights / weights.sum(1, keepdim=True) @ v


def cubic_weights(stored: int, wanted: int) -> Tensor:
    """Weights of cubic convolution (Keys, a = -0.75) from `stored` samples to `wanted`."""
    a = -0.75

    def kernel(distance: float) -> float:
        x = abs(distance)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    weights = torch.zeros(wanted, stored, dtype=torch.float64)
    for row in range(wanted):
        at = (row + 0.5) * stored / wanted - 0.5
        first = math.floor(at)
        for neighbour in range(first - 1, first + 3):
            column = min(max(neighbour, 0), stored - 1)
            weights[row, column] += kernel(at - neighbour)
    return weights


def stretched(table: Tensor, patches: int) -> Tensor:
    """Places of a smaller or larger grid by bicubic interpolation, `[patches, channels]`."""
    stored, wanted = math.isqrt(len(table)), math.isqrt(patches)
    if stored == wanted:
        return table
    weights = cubic_weights(stored, wanted)
    grid = table.reshape(stored, stored, -1)
    rows = torch.einsum("ys,sxc->yxc", weights, grid)
    return torch.einsum("xs,ysc->yxc", weights, rows).reshape(patches, -1)


def pixels_of(image: Image.Image, side: int) -> Tensor:
    """Scale an image to a square and normalize it, `[3, side, side]`."""
    scaled = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    values = torch.from_numpy(np.asarray(scaled, dtype=np.float64) / 255).permute(2, 0, 1)
    mean, std = (torch.tensor(each, dtype=torch.float64)[:, None, None] for each in (MEAN, STD))
    return (values - mean) / std


def tower_block(x: Tensor, tensors: Tensors, name: str, heads: int) -> Tensor:
    """One pre-norm block of the tower, `[patches, width]`."""
    width = x.shape[1] // heads
    mixed = affine(layer_norm(x, tensors, f"{name}.ln_1"), tensors, f"{name}.attn.in_proj")
    outputs = []
    for head in range(heads):
        own = mixed[:, 3 * width * head : 3 * width * (head + 1)]
        q, k, v = own[:, :width], own[:, width : 2 * width], own[:, 2 * width :]
        outputs.append(attend(q, k, v, causal=False))
    x = x + affine(torch.cat(outputs, 1), tensors, f"{name}.attn.out_proj")
    inner = affine(layer_norm(x, tensors, f"{name}.ln_2"), tensors, f"{name}.mlp.c_fc")
    gelu = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    return x + affine(gelu, tensors, f"{name}.mlp.c_proj")


def resample(x: Tensor, tensors: Tensors, name: str) -> Tensor:
    """Cross-attention of the queries to the patches, `[queries, output_dim]`."""
    queries, places = tensors[f"{name}.query"], tensors[f"{name}.pos_embed"]
    values = layer_norm(affine(x, tensors, f"{name}.kv_proj"), tensors, f"{name}.ln_kv")
    q_in = layer_norm(queries, tensors, f"{name}.ln_q") + places
    k_in = values + stretched(places, len(x))
    size = queries.shape[1]
    weight, bias = tensors[f"{name}.attn.in_proj_weight"], tensors[f"{name}.attn.in_proj_bias"]
    q = q_in @ weight[:size].T + bias[:size]
    k = k_in @ weight[size : 2 * size].T + bias[size : 2 * size]
    v = values @ weight[2 * size :].T + bias[2 * size :]
    heads = [slice(start, start + 128) for start in range(0, size, 128)]
    mixed = torch.cat([attend(q[:, h], k[:, h], v[:, h], causal=False) for h in heads], 1)
    return affine(mixed, tensors, f"{name}.attn.out_proj")


def features(pixels: Tensor, tensors: Tensors, visual: Mapping[str, Any]) -> Tensor:
    """Features of one image, `[queries, output_dim]`.

    Args:
        pixels: `[3, side, side]`, normalized.
        tensors: of the checkpoint.
        visual: the object of config.json.
    """
    at, patch = "transformer.visual", visual["patch_size"]
    grid = pixels.shape[1] // patch
    kernel = tensors[f"{at}.conv1.weight"]
    rows = []
    for y in range(grid):
        for x in range(grid):
            tile = pixels[:, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch]
            rows.append((kernel * tile).sum((1, 2, 3)))
    hidden = torch.stack(rows)
    hidden = hidden + stretched(tensors[f"{at}.positional_embedding"], grid * grid)
    hidden = layer_norm(hidden, tensors, f"{at}.ln_pre")
    for index in range(visual["layers"]):
        block = f"{at}.transformer.resblocks.{index}"
        hidden = tower_block(hidden, tensors, block, visual["heads"])
    pooled = resample(hidden, tensors, f"{at}.attn_pool")
    return layer_norm(pooled, tensors, f"{at}.ln_post") @ tensors[f"{at}.proj"]


def ntk_alpha(prompt_tokens: int, trained: int) -> float:
    """Factor of the rotary base for a prompt, at least 1."""
    return max(2.0 ** math.ceil(math.log(prompt_tokens / trained, 2) + 1) - 1, 1.0)


def rotated(head: Tensor, base: float) -> Tensor:
    """Rotate the halves of a head against each other, `[tokens, d]`, by complex numbers."""
    tokens, width = head.shape
    pairs = torch.complex(head[:, : width // 2], head[:, width // 2 :])
    turns = []
    for position in range(tokens):
        angles = [position * base ** (-2 * pair / width) for pair in range(width // 2)]
        turns.append([complex(math.cos(angle), math.sin(angle)) for angle in angles])
    turned = pairs * torch.tensor(turns, dtype=torch.complex128)
    return torch.cat([turned.real, turned.imag], 1)


def decoder_layer(
    x: Tensor, tensors: Tensors, index: int, config: Mapping[str, Any], base: float
) -> Tensor:
    """One decoder layer, `[tokens, hidden_size]`."""
    at, width = f"transformer.h.{index}", config["hidden_size"]
    eps, size = config["layer_norm_epsilon"], config["kv_channels"]
    normed = rms_norm(x, tensors[f"{at}.ln_1.weight"], eps)
    q, k, v = torch.chunk(affine(normed, tensors, f"{at}.attn.c_attn"), 3, dim=1)
    heads = []
    for start in range(0, width, size):
        own = slice(start, start + size)
        query, key = rotated(q[:, own], base), rotated(k[:, own], base)
        if config.get("use_logn_attn", True):
            trained = config["seq_length"]
            for position in range(trained, len(x)):
                query[position] *= math.log(position + 1, trained)
        heads.append(attend(query, key, v[:, own], causal=True))
    x = x + affine(torch.cat(heads, 1), tensors, f"{at}.attn.c_proj")
    normed = rms_norm(x, tensors[f"{at}.ln_2.weight"], eps)
    gate = affine(normed, tensors, f"{at}.mlp.w2")
    inner = affine(normed, tensors, f"{at}.mlp.w1") * gate / (1 + torch.exp(-gate))
    return x + affine(inner, tensors, f"{at}.mlp.c_proj")


def logits(
    ids: Sequence[int],
    images: Sequence[Tensor],
    stored: Tensors,
    config: Mapping[str, Any],
    prompt_tokens: int | None = None,
) -> Tensor:
    """Logits of all tokens, float64 `[tokens, vocab_size]`.

    Args:
        ids: tokens; between the start and the end of each image's, any ids, one per query.
        images: normalized pixels of each image.
        stored: tensors of a checkpoint by their names in the file.
        config: config.json.
        prompt_tokens: tokens that the factor of the rotary base follows from; None: all.
    """
    tensors = {name: tensor.double() for name, tensor in stored.items()}
    hidden = tensors["transformer.wte.weight"][torch.tensor(list(ids))]
    start = config["visual"]["image_start_id"]
    begins = [place for place, token in enumerate(ids) if token == start]
    ends = [place for place, token in enumerate(ids) if token == start + 1]
    for number, pixels in enumerate(images):  # a generated answer may hold these tokens too
        begin, end = begins[number], ends[number]
        hidden[begin + 1 : end] = features(pixels, tensors, config["visual"])
    base, size = config.get("rotary_emb_base", 10000), config["kv_channels"]
    if config.get("use_dynamic_ntk", True):
        alpha = ntk_alpha(prompt_tokens or len(hidden), config["seq_length"])
        base = base * alpha ** (size / (size - 2))
    for index in range(config["num_hidden_layers"]):
        hidden = decoder_layer(hidden, tensors, index, config, base)
    hidden = rms_norm(hidden, tensors["transformer.ln_f.weight"], config["layer_norm_epsilon"])
    return hidden @ tensors["lm_head.weight"].T


def tokenize(text: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """Merge the bytes of one word by ranks: always the pair whose token has the lowest rank."""
    if text in ranks:
        return [ranks[text]]
    parts = [text[place : place + 1] for place in range(len(text))]
    while True:
        known = [
            (ranks[parts[place] + parts[place + 1]], place)
            for place in range(len(parts) - 1)
            if parts[place] + parts[place + 1] in ranks
        ]
        if not known:
            return [ranks[part] for part in parts]
        _, place = min(known)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
