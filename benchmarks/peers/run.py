"""Compare llm-compressor and AutoRound with vlpress on the built-in models.

    python benchmarks/peers/run.py [--models tiny ...] [--settings w4a16 ...] [--peers ...]

Writes the calibration samples, runs one script per library that writes checkpoints in its own
environment (built by `make peers`), and measures the checkpoints with vlpress. The run resumes:
finished checkpoints and measurements of the same inputs are stored in --work. Exits with 1 if any
is missing. Writes results/peers.json and results/peers.md, or those of another --name, and compares
with a table of `benchmarks/accuracy.py` (--ours), sample by sample where its cells are still there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vlpress.calib.samples.draw import load_samples
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor
from vlpress.quant.checkpoint.loading import resolve_folder
from vlpress.quant.resolve import encode_samples

sys.path.append(str(Path(__file__).resolve().parents[1]))
from peers import samples
from peers.measure import gather, markdown, stored_runs
from peers.settings import GRIDS, METHODS, RECORD, SETTINGS, Job, seeds_of, write_jobs

HERE = Path(__file__).resolve().parent

ROOT = HERE.parents[1]
ENVIRONMENTS = ROOT / ".interop"


def main() -> None:
    """Quantize, measure, and write the two result files."""
    options = parse()
    torch.set_num_threads(1)
    for peer in options.peers:
        if not python_of(peer).is_file():
            sys.exit(f"{python_of(peer)} is missing; `make peers` builds the environments")
    jobs = all_jobs(options)
    for model in options.models:
        for seed in options.seeds:
            for peer in options.peers:
                chosen = [j for j in jobs if (j.model, j.seed, j.peer) == (model, seed, peer)]
                make([job for job in chosen if not is_made(job)], options.work)
    missing = [job for job in jobs if not is_made(job)]
    if not options.make_only:
        results = gather(
            [job for job in jobs if is_made(job)], options.validation, options.held_out
        )
        options.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
        (options.out / f"{options.name}.json").write_text(text, encoding="utf-8")
        ours = json.loads(options.ours.read_text(encoding="utf-8"))
        text = markdown(results, ours, stored_runs(jobs, options.ours_work))
        (options.out / f"{options.name}.md").write_text(text, encoding="utf-8")
        print(text)
    if missing:
        names = ", ".join(f"{job.model}/{job.out.name}" for job in missing)
        sys.exit(f"{len(missing)} of {len(jobs)} checkpoints were not made: {names}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=["tiny", "tiny-outliers"])
    settings = [*SETTINGS, *GRIDS]
    parser.add_argument("--settings", nargs="+", choices=settings, default=list(SETTINGS))
    parser.add_argument("--peers", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--methods", nargs="+", help="only these (default all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of calibration")
    parser.add_argument("--samples", type=int, default=128, help="calibration samples")
    parser.add_argument("--validation", type=int, default=256, help="validation samples")
    parser.add_argument("--held-out", type=int, default=512, help="held-out samples")
    parser.add_argument("--make-only", action="store_true", help="write checkpoints, measure none")
    parser.add_argument("--work", type=Path, default=ENVIRONMENTS / "work" / "peers")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results")
    parser.add_argument("--name", default="peers", help="of the result files")
    results = HERE.parent / "results" / "accuracy.json"
    parser.add_argument("--ours", type=Path, default=results, help="rows of vlpress")
    work = Path("out/accuracy")
    parser.add_argument("--ours-work", type=Path, default=work, help="--work of accuracy.py")
    options = parser.parse_args()
    options.work = options.work.resolve()
    return options


@dataclass(frozen=True)
class Drawn:
    """Calibration samples of one model and seed on disk."""

    source: Path
    samples: Path
    digest: str
    """Digest of the model's weights and the samples."""


def draw(model: str, seed: int, number: int, work: Path) -> Drawn:
    """Write the calibration samples of vlpress for this seed."""
    source = resolve_folder(model).resolve()
    processor = Processor.from_folder(source)
    prompts = encode_samples(load_samples(None, n=number, seed=seed), processor)
    image = int(processor.config.raw["image_token_id"])
    path = work / model / f"samples-seed{seed}.safetensors"
    samples.write([inputs_of(prompt, image) for prompt in prompts], path)
    return Drawn(source, path, digest([source / "model.safetensors", path]))


def inputs_of(prompt: Prompt, image_token: int) -> samples.Inputs:
    """A prompt with images as inputs of transformers' model, a batch of one.

    transformers computes the positions itself; without `mm_token_type_ids` it treats images as
    text.
    """
    tokens = prompt.input_ids[None]
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "mm_token_type_ids": (tokens == image_token).long(),
        "pixel_values": torch.cat([visual.patches for visual in prompt.visuals]),
        "image_grid_thw": torch.tensor([visual.grid for visual in prompt.visuals]),
    }


def digest(files: Iterable[Path]) -> str:
    """sha256 of the contents of files."""
    digest_of_files = hashlib.sha256()
    for file in files:
        digest_of_files.update(hashlib.sha256(file.read_bytes()).digest())
    return digest_of_files.hexdigest()


def all_jobs(options: argparse.Namespace) -> list[Job]:
    """Jobs of all selected checkpoints; writes their samples."""
    jobs = []
    for model in options.models:
        for seed in options.seeds:
            drawn = draw(model, seed, options.samples, options.work)
            for peer in options.peers:
                jobs += jobs_of(model, peer, seed, drawn, options)
    return jobs


def jobs_of(
    model: str, peer: str, seed: int, drawn: Drawn, options: argparse.Namespace
) -> list[Job]:
    """Jobs of one model, peer and seed."""
    made_from = f"{drawn.digest} {digest([ROOT / f'constraints-{peer}.txt'])}"
    return [
        Job(
            model=model,
            peer=peer,
            setting=setting,
            method=method,
            seed=seed,
            source=drawn.source,
            samples=drawn.samples,
            made_from=made_from,
            out=options.work / model / f"{peer}-{method}-{setting}-seed{seed}",
        )
        for setting, methods in METHODS[peer].items()
        for method in methods
        if setting in options.settings
        and (options.methods is None or method in options.methods)
        and seed in seeds_of(method, options.seeds)
    ]


def is_made(job: Job) -> bool:
    """Whether a checkpoint of the same inputs exists; folders are written atomically."""
    record = job.out / RECORD
    return record.is_file() and json.loads(record.read_text())["made_from"] == job.made_from


def make(jobs: Sequence[Job], work: Path) -> None:
    """Run the jobs of one model and seed with a library."""
    if not jobs:
        return
    first = jobs[0]
    name = f"{first.peer}-{first.model}-seed{first.seed}"
    orders, failed, log = (work / f"{name}.{kind}" for kind in ("jobs", "failed", "log"))
    write_jobs(jobs, orders)
    failed.unlink(missing_ok=True)
    print(f"== {name}: {len(jobs)} checkpoints, log in {log}", flush=True)
    script = f"peers.with_{first.peer.replace('-', '_')}"
    command = [python_of(first.peer), "-m", script, "--jobs", orders, "--failed", failed]
    # An environment must not import packages of another.
    clean = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    clean |= {"PYTHONPATH": str(HERE.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    with log.open("w") as output:
        # Libraries write files into the current folder.
        done = subprocess.run(
            list(map(str, command)),
            env=clean,
            cwd=work,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if not failed.is_file():
        print(f"the script ended with {done.returncode}", flush=True)
        return
    for out, reason in json.loads(failed.read_text()).items():
        print(f"{out}: {reason}", flush=True)


def python_of(peer: str) -> Path:
    """Interpreter of a library's environment."""
    return ENVIRONMENTS / peer / "bin" / "python"


if __name__ == "__main__":
    main()
