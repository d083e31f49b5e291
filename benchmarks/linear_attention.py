"""Speed of linear attention beside transformers' own functions, on the same inputs.

    python benchmarks/linear_attention.py [--tokens 400 2000] [--repeats 7]

The gated delta rule with the heads of published sizes of Qwen3.5: prompts in chunks (torch on both
sides) and single tokens (the compiled kernel, and torch on the other side). transformers has
kernels for GPUs; on a CPU it runs the functions that are measured here. Each run compares the
results; times alternate, and the ratio is the median over pairs. A second table has the errors of
both chunked forms against single tokens in float64. Updates results/linear_attention.json and
results/linear_attention.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common.machine import describe, provenance
from tabulate import tabulate
from torch import Tensor
from transformers.models.qwen3_5 import modeling_qwen3_5 as theirs

from vlpress.model.gated_delta import chunked_delta_rule, recurrent_delta_rule
from vlpress.quant.kernels import library
from vlpress.quant.kernels.delta_rule import CpuDeltaRule

HERE = Path(__file__).resolve().parent
KEY_HEADS, WIDTH = 16, 128
SIZES = {"0.8B, 2B": 16, "4B, 9B, 35B-A3B": 32, "27B": 48}
"""Value heads by published size."""
DECAYS = (0.01, 0.5, 5.0, 30.0)
"""Largest negative logarithms of the decay of a token; published models have 16 and more."""
TOLERANCE = 1e-3
Run = Callable[[], tuple[Tensor, Tensor]]


def main() -> None:
    """Measure, and write the result files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, nargs="+", default=[400, 2000], help="of prompts")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = [
        measure(name, heads, tokens, options.repeats)
        for name, heads in SIZES.items()
        for tokens in [*options.tokens, 1]
    ]
    errors = [measure_errors(decay) for decay in DECAYS]
    results = provenance() | {"rows": rows, "errors": errors}
    stored = HERE / "results" / "linear_attention.json"
    stored.write_text(json.dumps(results, indent=1) + "\n")
    stored.with_suffix(".md").write_text(markdown(results))
    print(markdown(results))


@torch.inference_mode()
def measure(name: str, heads: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Time both implementations in alternation.

    Args:
        name: of the published sizes.
        heads: value heads.
        tokens: of a prompt; 1 is a step of decoding.
        repeats: pairs of runs.
    """
    ours, other = runs(heads, tokens)
    if error := largest_error(ours(), other()):
        sys.exit(f"{name}, {tokens} tokens: the results differ by {error:.2g}")
    calls = 200 if tokens == 1 else 1
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(repeats):
        for side, run in (("ours", ours), ("theirs", other)):
            start = time.perf_counter()
            for _ in range(calls):
                run()
            seconds[side].append((time.perf_counter() - start) / calls)
    pairs = zip(seconds["ours"], seconds["theirs"], strict=True)
    return {
        "size": name,
        "value_heads": heads,
        "tokens": tokens,
        "seconds": seconds,
        "ratio": median(theirs / ours for ours, theirs in pairs),
    }


@torch.inference_mode()
def measure_errors(decay: float, tokens: int = 300) -> dict[str, Any]:
    """Compare both chunked forms with single tokens in float64.

    Args:
        decay: logarithms of the decay are between its negative and 0.
        tokens: of the prompt.

    Returns:
        Largest errors relative to the largest output.
    """
    shape, width = (1, 2, 2, tokens), 32
    q, k = (unit(torch.randn(1, 2, tokens, width)) for _ in "qk")
    v, g, beta = torch.randn(*shape, width), -decay * torch.rand(shape), torch.rand(shape)
    state = torch.randn(1, 2, 2, width, width)
    exact, _ = recurrent_delta_rule(*(each.double() for each in (q, k, v, g, beta, state)))
    ours, _ = chunked_delta_rule(q, k, v, g, beta, state)
    flat = (each.transpose(1, 2) for each in (q * width**0.5, k, v.flatten(1, 2)))
    other, _ = theirs.torch_chunk_gated_delta_rule(
        *flat,
        g=g.flatten(1, 2).transpose(1, 2),
        beta=beta.flatten(1, 2).transpose(1, 2),
        initial_state=state.flatten(1, 2),
    )
    reference = exact.flatten(1, 2).transpose(1, 2)

    def error(out: Tensor) -> float:
        return float((out - reference).abs().max() / reference.abs().max())

    return {
        "decay": decay,
        "ours": error(ours.flatten(1, 2).transpose(1, 2)),
        "theirs": error(other),
    }


def runs(heads: int, tokens: int) -> tuple[Run, Run]:
    """Return calls of both implementations on the same random inputs in float32."""
    q, k = (torch.randn(1, tokens, KEY_HEADS, WIDTH) for _ in "qk")
    v = torch.randn(1, tokens, heads, WIDTH)
    g, beta = -torch.rand(1, tokens, heads), torch.rand(1, tokens, heads)
    state = torch.randn(1, heads, WIDTH, WIDTH)
    reference = (
        theirs.torch_recurrent_gated_delta_rule
        if tokens == 1
        else theirs.torch_chunk_gated_delta_rule
    )
    kernels = library.chosen_kernels()
    step = recurrent_delta_rule if isinstance(kernels, str) else CpuDeltaRule(kernels)
    rule = step if tokens == 1 else chunked_delta_rule
    groups = (1, KEY_HEADS, heads // KEY_HEADS)

    def ours() -> tuple[Tensor, Tensor]:
        query, key = (unit(x).transpose(1, 2) for x in (q, k))
        value = v.transpose(1, 2).reshape(*groups, tokens, WIDTH)
        decay, strength = (x.transpose(1, 2).reshape(*groups, tokens) for x in (g, beta))
        before = state.clone().view(*groups, WIDTH, WIDTH)
        out, after = rule(query * WIDTH**-0.5, key, value, decay, strength, before)
        return out.flatten(1, 2).transpose(1, 2), after.flatten(1, 2)

    def other() -> tuple[Tensor, Tensor]:
        return reference(
            q,
            k,
            v,
            g=g,
            beta=beta,
            initial_state=state.clone(),
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )

    return ours, other


def unit(x: Tensor) -> Tensor:
    """Scale the last dimension to length 1."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def largest_error(ours: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """Largest difference relative to the largest value, 0 if it is within the tolerance."""
    errors = [
        float((mine - reference).abs().max() / reference.abs().max())
        for mine, reference in zip(ours, other, strict=True)
    ]
    return max(errors) if max(errors) > TOLERANCE else 0.0


def markdown(results: dict[str, Any]) -> str:
    """Table of the results."""
    body = [
        [
            row["size"],
            str(row["value_heads"]),
            str(row["tokens"]),
            *(f"{1e3 * median(row['seconds'][side]):.3f}" for side in ("ours", "theirs")),
            f"{row['ratio']:.2f}",
        ]
        for row in results["rows"]
    ]
    head = ["size", "value heads", "tokens", "vlpress, ms", "transformers, ms", "times as fast"]
    table = tabulate(body, head, tablefmt="github", disable_numparse=True)
    return (
        f"# Speed of linear attention\n\n{describe(results)}\n\nThe gated delta rule of one layer "
        f"for one prompt, {KEY_HEADS} key heads of width {WIDTH}, without projections and "
        f"convolution.\nMedians of runs in alternation; results agree within {TOLERANCE:g} of the "
        f"largest value.\n\n{table}\n\nLargest error against single tokens in float64, relative to "
        "the largest output, by the largest\nnegative logarithm of a token's decay. Decays are "
        "differences of sums in transformers, and sums from\ntoken to token here.\n\n"
        + tabulate(
            [
                [f"{e['decay']:g}", f"{e['ours']:.1e}", f"{e['theirs']:.1e}"]
                for e in results["errors"]
            ],
            ["decay", "vlpress", "transformers"],
            tablefmt="github",
            disable_numparse=True,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
