"""Shared fixtures, most of them made by `tiny_models.py`."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path

import hypothesis
import pytest
import torch
from browsers import chromium_path
from eval_files import package_files
from report_figures import drawn_once
from small_run import make_run
from tiny_models import (
    EACH_FAMILY,
    TOKEN_ID,
    RandomModel,
    TinyConfig,
    WriteCheckpoint,
    make_random_model,
    make_tiny_config,
    write_checkpoint_folder,
)
from tokenizers import Tokenizer
from trained_tokenizers import trained_tokenizer, write_tokenizer_files
from workbench import Workbench

from vlpress.common.imports import without_collections
from vlpress.eval.tasks.generated.answer_limits import Defaults
from vlpress.model.processing.processor import Processor
from vlpress.quant.vocabulary.byte_pairs import BytePairs

# No deadline: the first call of a torch operation can take a second. No example database: tests
# write below tmp_path only.
hypothesis.settings.register_profile("vlpress", deadline=None, database=None)
hypothesis.settings.load_profile("vlpress")

# Without a GPU the Triton kernels run in Triton's interpreter, which is chosen at its import.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # `make aot` sets it to 0

# A shell's background jobs ignore Ctrl-C, and so would the processes that tests start and stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Leave all that is imported and collected out of garbage collections.

    Evaluations collect before they measure memory, and each time would look through all modules of
    the suite.
    """
    with without_collections():
        result = yield
    gc.freeze()
    return result


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries report at exit what was not collected


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests whose marker requires a GPU or a browser that this machine lacks."""
    if not torch.cuda.is_available():
        _skip(items, "gpu", "needs a CUDA device")
    # CI installs a browser and sets the variable, so that these tests fail there if it is missing.
    if chromium_path() is None and os.environ.get("VLPRESS_NEED_CHROMIUM") != "1":
        _skip(items, "browser", "needs Chromium, such as Debian's package chromium")


def _skip(items: list[pytest.Item], marker: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(marker) is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def answer_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the answers of evaluations without an output folder out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLPRESS_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def report_figures() -> Iterator[None]:
    """Draw equal figures of reports once; each takes matplotlib a tenth of a second."""
    html = sys.modules.get("vlpress.eval.report.html")  # None: no test is about reports
    with nullcontext() if html is None else drawn_once(html):
        yield


@pytest.fixture
def reference_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the reference kernel, so that a reloaded model equals the one in memory bit for bit."""
    monkeypatch.setenv("VLPRESS_KERNEL", "reference")


@pytest.fixture
def few_alphas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search three strengths of smoothing in place of eight, where each choice will do."""
    monkeypatch.setattr("vlpress.quant.driver.scaling.smoothing.ALPHAS", (0.3, 0.5, 0.7))


@contextmanager
def _short_answers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "vlpress.eval.tasks.generated.answer_limits.DRAWINGS", Defaults(plain=8, reasoning=8)
        )
        yield


@pytest.fixture(scope="module")
def short_answers() -> Iterator[None]:
    """Limit answers to the built-in benchmarks to 8 tokens; random models rarely stop earlier."""
    with _short_answers():
        yield


@pytest.fixture(params=EACH_FAMILY)
def family(request: pytest.FixtureRequest) -> str:
    """Run a test for every family."""
    name: str = request.param
    return name


@pytest.fixture
def tiny_config() -> TinyConfig:
    return make_tiny_config


@pytest.fixture
def random_model() -> RandomModel:
    return make_random_model


@pytest.fixture
def write_checkpoint() -> WriteCheckpoint:
    return write_checkpoint_folder


@pytest.fixture
def token_id() -> Callable[[str], int]:
    """Map a special token of the small tokenizer to its id."""
    return TOKEN_ID.__getitem__


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small random Qwen2.5-VL with all side files; read-only by convention."""
    return write_checkpoint_folder(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def finished_run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished `vlpress run` with `short_answers`, see `small_run`; take a copy."""
    out = tmp_path_factory.mktemp("run") / "out"
    with _short_answers():
        make_run(checkpoint, out)
    return out


@pytest.fixture(scope="session")
def processor(checkpoint: Path) -> Processor:
    return Processor.from_folder(checkpoint)


@pytest.fixture(scope="session")
def processors(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Processor]:
    """Map a family to the processor of a small random model of it."""

    @cache
    def make(family: str) -> Processor:
        folder = tmp_path_factory.mktemp(family)
        return Processor.from_folder(write_checkpoint_folder(folder, make_random_model(family)))

    return make


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the packaged benchmark files by small ones; returns their folder."""
    return package_files(tmp_path, monkeypatch)


@pytest.fixture
def bench(processor: Processor, packaged: Path, tmp_path: Path) -> Workbench:
    return Workbench(processor, tmp_path)


@pytest.fixture(scope="session")
def trained() -> Tokenizer:
    """A byte-level BPE tokenizer with deep merges, trained on a generated text."""
    return trained_tokenizer()


@pytest.fixture(scope="session")
def tokenizer_folder(trained: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with all files of that tokenizer; read-only by convention."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer_files(folder, trained)
    return folder


@pytest.fixture(scope="session")
def byte_pairs(tokenizer_folder: Path) -> BytePairs:
    return BytePairs.from_folder(tokenizer_folder)
