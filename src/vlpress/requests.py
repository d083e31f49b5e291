"""What a user asked for, and the one definition of every default of the command line."""

from __future__ import annotations

import shlex
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Literal

BUILTIN_BENCHES = ("builtin-mmbench", "builtin-ocrbench", "builtin-mmmu")
BUILTIN_MODELS = ("tiny", "tiny-outliers")


@dataclass(frozen=True)
class Settings:
    """How a model is opened and its images are read."""

    device: str = "auto"
    dtype: str = "auto"
    min_pixels: int | None = None
    """Bounds of an image's area after resizing, in pixels; None = the checkpoint's own."""
    max_pixels: int | None = None
    seed: int | None = None
    """Of the calibration draw, the choice that a limit makes, and sampling; None: 0, or what the
    recipe says."""
    activations: Literal["recipe", "int8"] = "recipe"
    """int8 rounds the inputs of layers too whose weights alone are quantized."""
    head: Literal["recipe", "w8a16", "w4a16"] = "recipe"
    """Rounds the output head in memory, which a checkpoint cannot hold beside a tied embedding."""
    kv_cache: Literal["model", "int8"] = "model"
    """int8 keeps keys and values rounded while an answer is generated."""
    threads: int | None = None
    """CPU threads; None: as many as torch has chosen. Applied by `vlpress.threads.use_threads`."""


@dataclass(frozen=True)
class Calibration:
    """Where calibration samples come from, and where their activations wait."""

    source: str | None = None
    """None: the built-in drawings."""
    samples: int | None = None
    """None: as many as the recipe says."""
    memory: float = 0.25
    """GiB of activations that are kept in memory as well as in files."""
    skip_bad: int = 0
    """Samples that cannot be used and that others take the place of; one more is an error."""

    @property
    def budget(self) -> int:
        """The same in bytes."""
        return round(self.memory * 2**30)


@dataclass(frozen=True)
class Questions:
    """What a model is asked, and how its answers are read."""

    benches: tuple[str, ...] | None = None
    """NAME or NAME=PATH; None: the built-in ones."""
    _: KW_ONLY
    data_root: Path | None = None
    """Folder that holds published benchmark files under their names."""
    limit: int | None = None
    """Questions per benchmark, spread over its categories; None = all."""
    batch_size: int = 32
    prompt_style: str | None = None
    """None: the layout that the model's family was published with."""
    rules: str | None = None
    """Answer-extraction profile; None: the default one."""
    pixels: str = "model"
    """How large pictures are shown, a named budget."""
    blank_images: bool = False
    """Replace every picture by grey: what is then still right was not seen but guessed."""
    text: Path | None = None
    """A text file to read for its perplexity."""
    noise: int | None = None
    """Questions of each benchmark that the original answers once more with another batch size and
    once with another dtype, to see how far it is from itself; None: 32 in a run, else none."""


@dataclass(frozen=True)
class Served:
    """A model behind an OpenAI-compatible chat API, and how to ask it."""

    url: str
    model: str | None = None
    """Its name there; None: the only one that the server offers."""
    concurrency: int = 8
    """Requests under way at once."""
    timeout: float = 600.0
    """Seconds for one request."""
    retries: int = 6
    """Of a request that fails in a way that may pass."""
    api_key_env: str | None = None
    """Environment variable that holds the API key; None: OPENAI_API_KEY, if it is set."""
    extra: str | None = None
    """Further request fields as a JSON object."""


@dataclass(frozen=True)
class RunRequest:
    """One ``vlpress run``."""

    out: Path
    model: str = "tiny"
    recipe: str = "w4a16"
    tp: int | None = None
    """Devices that an engine will split the model over; None: what the recipe says."""
    calibration: Calibration = field(default_factory=Calibration)
    questions: Questions = field(default_factory=Questions)
    settings: Settings = field(default_factory=Settings)
    margin: float = 2.0
    """Points that a candidate may lose."""
    overwrite: bool = False
    fresh: bool = False

    def command(self) -> str:
        """The command line that asks for this, in one line; defaults are left out."""
        words = ["vlpress", "run", self.model, "-o", str(self.out), "--recipe", self.recipe]
        for bench in self.questions.benches or ():
            words += ["--bench", bench]
        questions, settings, usual = self.questions, self.settings, Questions()
        batch = questions.batch_size
        options = {
            "--tp": self.tp,
            "--calib": self.calibration.source,
            "--calib-samples": self.calibration.samples,
            "--skip-bad-samples": self.calibration.skip_bad or None,
            "--limit": questions.limit,
            "--batch-size": None if batch == usual.batch_size else batch,
            "--prompt-style": questions.prompt_style,
            "--rules": questions.rules,
            "--pixels": None if questions.pixels == usual.pixels else questions.pixels,
            "--data-root": questions.data_root,
            "--text": questions.text,
            "--noise": questions.noise,
            "--margin": None if self.margin == RunRequest.margin else f"{self.margin:g}",
            "--device": None if settings.device == Settings.device else settings.device,
            "--dtype": None if settings.dtype == Settings.dtype else settings.dtype,
            "--min-pixels": settings.min_pixels,
            "--max-pixels": settings.max_pixels,
            "--seed": settings.seed,
            "--threads": settings.threads,
        }
        for option, value in options.items():
            words += [] if value is None else [option, str(value)]
        return shlex.join(words)
