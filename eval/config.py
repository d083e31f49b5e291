"""Options of evaluations and of `vlpress run`, with their defaults."""

from __future__ import annotations

import shlex
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

from ..quant.config import Calibration, Settings

BUILTIN_BENCHES = ("builtin-mmbench", "builtin-ocrbench", "builtin-mmmu")


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
