"""Checks of an evaluation's options before torch is imported and before a model is downloaded."""

from __future__ import annotations

from pathlib import Path

from ...common.near_misses import did_you_mean, near_paths
from ...common.options import elements
from ...quant.config import BUILTIN_MODELS, InputOptions
from ..answering.sampling import Decoding
from ..config import BUILTIN_BENCHES, BenchmarkOptions
from ..tasks import check_spec
from ..tasks.extract import DEFAULT_PROFILE
from ..tasks.files.jsonl import SUFFIXES
from ..tasks.generated.answer_limits import check_limits, parse_limits
from ..tasks.registry import where_to_get
from ..tasks.resolution import DEFAULT as MODEL_PIXELS

SUGGESTED_BENCH = "MMBench_DEV_EN"


def check_questions(questions: BenchmarkOptions, inputs: InputOptions) -> None:
    """Check the options of benchmarks before a model is downloaded.

    Raises:
        FileNotFoundError: a benchmark file does not exist.
        ValueError: a name, rule profile, prompt style or pixel budget is unknown, a benchmark or a
            limit of answers is repeated, a limit is of another benchmark, or the bounds of image
            areas are given twice, or options of sampling contradict each other.
    """
    found = [
        check_spec(
            spec,
            prompt_style=questions.prompt_style,
            profile=questions.rules or DEFAULT_PROFILE,
            pixels=questions.pixels,
            coordinates=questions.coordinates,
            data_root=questions.data_root,
        )
        for spec in questions.bench or BUILTIN_BENCHES
    ]
    Decoding.of(questions, seed=0)
    check_limits(parse_limits(elements(questions.max_new_tokens)), found)
    names = [benchmark.name for benchmark in found]
    if len(set(names)) < len(names):
        raise ValueError(f"--bench names {', '.join(names)}; give each benchmark once")
    if questions.pixels != MODEL_PIXELS and (
        inputs.min_pixels is not None or inputs.max_pixels is not None
    ):
        raise ValueError(
            f"--pixels {questions.pixels} sets both bounds of an image's area; give it, or "
            "--min-pixels and --max-pixels"
        )


def check_question_file(file: Path) -> None:
    """Check the name of a file of own questions.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is a folder, or a file of an unknown type.
    """
    kinds = f"questions are read from {', '.join(SUFFIXES)}, see docs/own-tasks.md"
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file;{did_you_mean(near_paths(file))} {kinds}")
    if not file.is_file() or file.suffix.lower() not in SUFFIXES:
        kind = f"a {file.suffix or 'nameless'} file" if file.is_file() else "a folder"
        raise ValueError(f"{file} is {kind}; {kinds}")


def refuse_drawings(model: str | Path, bench: object) -> None:
    """Refuse the built-in benchmarks as the default for any model but the built-in ones.

    Args:
        model: its name.
        bench: the benchmarks that are given; None: none.

    Raises:
        ValueError: `bench` is not given for another model.
    """
    if bench is None and model not in BUILTIN_MODELS:
        raise ValueError(
            f"{model}: the built-in benchmark files are drawings and say nothing about "
            f"it; give real ones, such as --bench {SUGGESTED_BENCH}=PATH; "
            f"{where_to_get(SUGGESTED_BENCH)}"
        )
