"""Options of the verbs that make and use checkpoints, with their defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from ..common.options import Option, Options
from ..model.built_in import built_in_names
from ..model.kv_quant.types import CacheChoice
from ..model.token_reduction.table import METHODS, NONE, RECIPE, parse_choice
from .recipe.presets import PRESETS
from .recipe.recover import END_TO_END

BUILTIN_MODELS = built_in_names()
MODEL_NAMES = f"A checkpoint folder, a hub id, or a built-in model: {', '.join(BUILTIN_MODELS)}"

MODEL = Option(
    f"{MODEL_NAMES}.",
    is_argument=True,
    metavar="MODEL",
    suggestions=BUILTIN_MODELS,
)
OUT = Option("Output folder.", flags=("--out", "-o"), command_flag="-o")
FORMATS = ("gptq", "gptq_v2", "compressed-tensors", "awq", "fp8")
CHECKPOINT_FORMATS = ", ".join(FORMATS)
DEPLOYMENT_FORMATS = ("gguf", "onnx", "onnx-genai")
"""Formats of other runtimes, which `export` alone writes."""


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Options):
    """Device and dtype that a model is loaded with."""

    device: Annotated[
        str,
        Option(
            "auto, cpu, cuda or cuda:N.",
            pattern=r"auto|cpu|cuda(:\d+)?",
            allowed="auto, cpu, cuda, cuda:N",
            suggestions=("auto", "cpu", "cuda"),
        ),
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "bf16", "fp16", "fp32"], Option("auto, bf16, fp16 or fp32.")
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class AdapterOption(Options):
    """Use of the low-rank adapter of a checkpoint."""

    no_adapter: Annotated[
        bool, Option("Leave out the low-rank adapter of a checkpoint that has one.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions(AdapterOption):
    """Choices at load time that a checkpoint does not make."""

    activations: Annotated[
        Literal["recipe", "int8"],
        Option(
            "int8 also quantizes the inputs of weight-only layers, for speed; recipe follows the "
            "checkpoint."
        ),
    ] = "recipe"
    head: Annotated[
        Literal["recipe", "w8a16", "w4a16"],
        Option("w8a16 or w4a16 quantizes the output head at load time, also a tied one."),
    ] = "recipe"
    kv_cache: Annotated[
        CacheChoice,
        Option(
            "KV cache of the dtype of the model, or quantized as by vLLM: int8 and int4 per token "
            "and head, fp8 per layer; recipe: fp8 if the checkpoint has scales for it, else model."
        ),
    ] = "recipe"
    reduce: Annotated[
        str,
        Option(
            "Drop visual tokens after the merger: duplicates:threshold=T, divprune:keep=SHARE or "
            "random:keep=SHARE,seed=N; none keeps all, recipe follows the checkpoint.",
            metavar="RULE",
            suggestions=(RECIPE, NONE, *METHODS),
        ),
    ] = RECIPE

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduce != RECIPE:
            parse_choice(self.reduce)


@dataclass(frozen=True, kw_only=True)
class BoundsOptions(Options):
    """Bounds of image areas after resizing."""

    min_pixels: Annotated[
        int | None, Option("Smallest image area.", minimum=1, default_text="the model's")
    ] = None
    max_pixels: Annotated[
        int | None, Option("Largest image area.", minimum=1, default_text="the model's")
    ] = None


@dataclass(frozen=True, kw_only=True)
class SeedOption(Options):
    """The random seed."""

    seed: Annotated[
        int | None,
        Option(
            "Random seed of calibration draws, question subsets and sampling.",
            minimum=0,
            default_text="the recipe's, or 0",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class InputOptions(SeedOption, BoundsOptions):
    """Processing of images, and the random seed."""


@dataclass(frozen=True, kw_only=True)
class ThreadOptions(Options):
    """Number of CPU threads, see `common.threads.use_threads`."""

    threads: Annotated[
        int | None,
        Option(
            "Number of CPU threads.", minimum=1, default_text="OMP_NUM_THREADS, or one per core"
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ModelSettings(ThreadOptions, InputOptions, RuntimeOptions, DeviceOptions):
    """Loading of a model and processing of its inputs."""


@dataclass(frozen=True, kw_only=True)
class ProgressOption(Options):
    """Output while a verb runs."""

    progress: Annotated[
        bool,
        Option(
            "Show progress, notes and warnings on standard error; otherwise notes and warnings go "
            "to the `vlpress` logger.",
            in_command_line=False,
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class OverwriteOptions(ProgressOption):
    """Treatment of earlier work in the output folder."""

    overwrite: Annotated[
        bool,
        Option(
            "Discard work in the output folder that was made with other options.",
            is_recorded=False,
        ),
    ] = False
    fresh: Annotated[
        bool,
        Option("Discard all earlier work in the output folder; do not resume.", is_recorded=False),
    ] = False


@dataclass(frozen=True)
class ModelArgument(Options):
    """The model that a verb works on."""

    model: Annotated[str | Path, MODEL]


@dataclass(frozen=True)
class OutOption(Options):
    """The output folder."""

    out: Annotated[Path | str, OUT]


@dataclass(frozen=True, kw_only=True)
class TensorParallelOption(Options):
    """Number of devices at serving time."""

    tp: Annotated[
        int | None,
        Option(
            "Tensor-parallel size at serving time; intermediate sizes are padded to be divisible.",
            minimum=1,
            default_text="the recipe's, or 1",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(TensorParallelOption):
    """Recipe of a quantization."""

    recipe: Annotated[
        str,
        Option(
            f"A preset ({', '.join(PRESETS)}) or a TOML file.",
            flags=("--recipe", "-r"),
            suggestions=tuple(PRESETS),
        ),
    ] = "w4a16"


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions(Options):
    """Calibration samples and the memory for their activations."""

    calib: Annotated[
        str | Path | None,
        Option(
            "Calibration samples: a .jsonl or .txt file, a dataset folder or hub id. "
            "Without it: built-in drawings."
        ),
    ] = None
    calib_samples: Annotated[
        int | None,
        Option("Number of calibration samples.", minimum=1, default_text="the recipe's, or 128"),
    ] = None
    skip_bad_samples: Annotated[
        int,
        Option(
            "Number of unusable calibration samples that are replaced by others, with a warning; "
            "one more is an error.",
            minimum=0,
        ),
    ] = 0
    memory: Annotated[
        float,
        Option(
            "Activation cache size in RAM (GiB); the rest is read from disk.",
            minimum=0.0,
            is_recorded=False,
        ),
    ] = 0.25

    @property
    def cache_bytes(self) -> int:
        """`memory` in bytes."""
        return round(self.memory * 2**30)


@dataclass(frozen=True, kw_only=True)
class FormatOption(Options):
    """Format of a checkpoint that is written."""

    format: Annotated[
        str,
        Option(
            f"Checkpoint format: {CHECKPOINT_FORMATS}; auto uses compressed-tensors if it can hold "
            "the result, else gptq.",
            suggestions=("auto", *FORMATS),
        ),
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class RefreshOption(Options):
    """Use of the cached rates of this machine."""

    refresh: Annotated[
        bool, Option("Measure the speed of this machine again instead of using the cached rates.")
    ] = False


@dataclass(frozen=True)
class PlanOptions(
    RefreshOption,
    ProgressOption,
    ThreadOptions,
    InputOptions,
    DeviceOptions,
    FormatOption,
    CalibrationOptions,
    RecipeOptions,
    ModelArgument,
):
    """Options of `plan`."""


@dataclass(frozen=True)
class QuantizeOptions(
    OverwriteOptions,
    ThreadOptions,
    InputOptions,
    DeviceOptions,
    FormatOption,
    CalibrationOptions,
    RecipeOptions,
    OutOption,
    ModelArgument,
):
    """Options of `quantize`."""


@dataclass(frozen=True)
class CheckpointArgument(Options):
    """A checkpoint to export."""

    checkpoint: Annotated[
        str | Path,
        Option(
            "A quantized checkpoint, a folder or a hub id; a float one too for "
            f"{', '.join(DEPLOYMENT_FORMATS)}.",
            is_argument=True,
            metavar="CKPT",
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class DeploymentOptions(Options):
    """Options of single formats of other runtimes; None: not given."""

    patches: Annotated[
        int | None,
        Option(
            "onnx: fixed number of patches of the vision graph, a multiple of 16.",
            minimum=16,
            default_text="any number",
        ),
    ] = None
    prefill: Annotated[
        int | None,
        Option(
            "onnx: also write a graph for a prompt of exactly this many tokens.",
            minimum=1,
            default_text="none",
        ),
    ] = None
    embedding: Annotated[
        Literal["graph", "raw"] | None,
        Option(
            "onnx: token embedding as a graph, or raw as a table of fp16 numbers.",
            default_text="graph",
        ),
    ] = None
    tp: Annotated[
        int | None,
        Option(
            "onnx: divide the text part into this many shards for tensor parallelism.",
            minimum=2,
            default_text="not divided",
        ),
    ] = None
    float_type: Annotated[
        Literal["f16", "f32"] | None,
        Option(
            "gguf: type of weights that are not quantized, if it holds them exactly: f16 or f32.",
            default_text="as stored",
        ),
    ] = None


@dataclass(frozen=True)
class ExportOptions(
    DeploymentOptions,
    AdapterOption,
    OverwriteOptions,
    ThreadOptions,
    OutOption,
    CheckpointArgument,
):
    """Options of `export`."""

    _: KW_ONLY
    format: Annotated[
        str,
        Option(
            f"Format to convert to: {', '.join((*FORMATS, *DEPLOYMENT_FORMATS))}.",
            suggestions=(*FORMATS, *DEPLOYMENT_FORMATS),
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Options):
    """What is trained, and for how long; None: the default of the recipe's `[recover]` table."""

    params: Annotated[
        Sequence[str],
        Option(
            f"Trained parameters: {', '.join(END_TO_END)}.",
            suggestions=END_TO_END,
        ),
    ] = ("scales",)
    teacher: Annotated[
        Sequence[str] | None,
        Option(
            "Teacher: self (the model of --base), a model, or a folder that `teach` wrote.",
            default_text="self",
        ),
    ] = None
    weight: Annotated[
        Sequence[float] | None,
        Option("Weight of each teacher, in their order.", minimum=0.0, default_text="equal"),
    ] = None
    targets: Annotated[
        Literal["teachers", "answers"],
        Option("Distributions of the teachers, or the samples' own answers (fine-tuning)."),
    ] = "teachers"
    samples: Annotated[
        int | None,
        Option(
            "Number of samples, those that are held out included.",
            minimum=2,
            default_text="1024",
        ),
    ] = None
    epochs: Annotated[
        int | None, Option("Passes over the samples.", minimum=1, default_text="2")
    ] = None
    lr: Annotated[
        float | None,
        Option("Learning rate, relative to the values.", minimum=0.0, default_text="the kind's"),
    ] = None
    batch: Annotated[int | None, Option("Samples per step.", minimum=1, default_text="16")] = None


@dataclass(frozen=True, kw_only=True)
class SampleSourceOptions(Options):
    """Source of the samples that are trained on."""

    calib: Annotated[
        str | Path | None,
        Option(
            "Samples: a .jsonl or .txt file, a dataset folder or hub id. Without it: built-in "
            "drawings."
        ),
    ] = None
    skip_bad_samples: Annotated[
        int,
        Option(
            "Number of unusable samples that are replaced by others, with a warning; one more is "
            "an error.",
            minimum=0,
        ),
    ] = 0
    memory: Annotated[
        float,
        Option(
            "Cache of image features in RAM (GiB); the rest is read from disk.",
            minimum=0.0,
            is_recorded=False,
        ),
    ] = 0.25


@dataclass(frozen=True)
class RecoveredArgument(Options):
    """A checkpoint to recover."""

    checkpoint: Annotated[
        str | Path,
        Option("A quantized checkpoint, a folder or a hub id.", is_argument=True, metavar="CKPT"),
    ]


@dataclass(frozen=True)
class RecoverOptions(
    OverwriteOptions,
    ThreadOptions,
    InputOptions,
    DeviceOptions,
    SampleSourceOptions,
    TrainingOptions,
    OutOption,
    RecoveredArgument,
):
    """Options of `recover`."""

    _: KW_ONLY
    base: Annotated[
        str | Path | None,
        Option(
            f"The float model that the checkpoint was made from, for the teacher self. "
            f"{MODEL_NAMES}.",
            suggestions=BUILTIN_MODELS,
            default_text="none",
        ),
    ] = None


@dataclass(frozen=True)
class TeachOptions(
    ProgressOption,
    ThreadOptions,
    InputOptions,
    DeviceOptions,
    SampleSourceOptions,
    OutOption,
    ModelArgument,
):
    """Options of `teach`."""

    _: KW_ONLY
    samples: Annotated[int, Option("Number of samples, as in `recover`.", minimum=2)] = 1024
    batch: Annotated[int, Option("Samples at once.", minimum=1)] = 16


@dataclass(frozen=True)
class PackOptions(OverwriteOptions, ThreadOptions, OutOption, ModelArgument):
    """Options of `pack`."""


@dataclass(frozen=True)
class PackedArgument(Options):
    """A packed checkpoint."""

    checkpoint: Annotated[
        str | Path,
        Option("Folder of a packed checkpoint.", is_argument=True, metavar="CKPT"),
    ]


@dataclass(frozen=True)
class UnpackOptions(OverwriteOptions, ThreadOptions, OutOption, PackedArgument):
    """Options of `unpack`."""


@dataclass(frozen=True)
class InspectOptions(Options):
    """Options of `inspect`."""

    checkpoint: Annotated[
        Path | str, Option("A quantized checkpoint.", is_argument=True, metavar="CKPT")
    ]


@dataclass(frozen=True)
class PushOptions(Options):
    """Options of `push`."""

    checkpoint: Annotated[
        Path | str,
        Option("Folder of a quantized checkpoint.", is_argument=True, metavar="CKPT"),
    ]
    repo: Annotated[
        str, Option("Repository on the hub: OWNER/NAME.", is_argument=True, metavar="REPO")
    ]
    _: KW_ONLY
    public: Annotated[
        bool, Option("Create the repository public; an existing one stays as it is.")
    ] = False
    revision: Annotated[
        str | None, Option("Existing branch to commit to.", default_text="the main branch")
    ] = None


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(Options):
    """Sampling of answers."""

    temperature: Annotated[
        float, Option("Sampling temperature; 0 is greedy decoding.", minimum=0.0)
    ] = 0.0
    top_p: Annotated[
        float, Option("Probability mass of nucleus sampling.", minimum=0.0, maximum=1.0)
    ] = 1.0
    top_k: Annotated[
        int, Option("Number of most likely tokens to sample from; 0 = no limit.", minimum=0)
    ] = 0


@dataclass(frozen=True)
class PromptOptions(SamplingOptions, ModelArgument):
    """A prompt and the sampling of its answer."""

    prompt: Annotated[str, Option("The question.", is_argument=True, metavar="PROMPT")]
    _: KW_ONLY
    image: Annotated[
        str | Path | Sequence[str | Path] | None,
        Option("An image file, or a file:// or data: URL; repeatable."),
    ] = None
    video: Annotated[str | Path | None, Option("A video file.")] = None
    max_new_tokens: Annotated[int, Option("Maximum answer length in tokens.", minimum=1)] = 256
    repetition_penalty: Annotated[
        float, Option("Penalty on repeated tokens; 1 = none.", minimum=0.0)
    ] = 1.0
    on_text: Annotated[
        Callable[[str], None] | None,
        Option("Called with each new piece of the answer.", in_command_line=False),
    ] = None


NGRAM, MTP = "ngram", "mtp"
"""Drafts that need no second model."""
MOST_DRAFTS = 32
"""Drafts per pass: more are never accepted often enough."""


@dataclass(frozen=True, kw_only=True)
class DraftOptions(Options):
    """Speculative decoding."""

    draft: Annotated[
        str | Path | None,
        Option(
            "Draft tokens that the model checks several at a time: a model with the same "
            "tokenizer, ngram (text that occurred before), or mtp (the module of a Qwen3.5 "
            "checkpoint). Answers do not change but for rounding.",
            metavar="MODEL|ngram|mtp",
            suggestions=(NGRAM, MTP, *BUILTIN_MODELS),
        ),
    ] = None
    draft_tokens: Annotated[
        int, Option("Drafts per pass of the model.", minimum=1, maximum=MOST_DRAFTS)
    ] = 4


@dataclass(frozen=True)
class GenerateOptions(ModelSettings, DraftOptions, PromptOptions):
    """Options of `generate`."""


@dataclass(frozen=True)
class ImatrixOptions(
    ProgressOption,
    ThreadOptions,
    InputOptions,
    DeviceOptions,
    CalibrationOptions,
    ModelArgument,
):
    """Options of `imatrix`."""

    _: KW_ONLY
    out: Annotated[
        Path | str, Option("Output file.", flags=("--out", "-o"), command_flag="-o", metavar="FILE")
    ]


@dataclass(frozen=True)
class VerifyOptions(ProgressOption, ThreadOptions, InputOptions, DeviceOptions):
    """Options of `verify`."""

    checkpoint: Annotated[
        Path | str, Option("A quantized checkpoint.", is_argument=True, metavar="CKPT")
    ]
    _: KW_ONLY
    integer: Annotated[
        bool,
        Option(
            "Compute layers with static int8 activations with integers alone, and compare them "
            "with the kernels."
        ),
    ] = False
    out: Annotated[
        Path | str | None,
        Option(
            "File for the result with all multipliers and shifts, JSON.",
            flags=("--out", "-o"),
            command_flag="-o",
            metavar="FILE",
        ),
    ] = None
    table: Annotated[
        Path | str | None,
        Option(
            "Take multipliers, shifts, biases and output scales from a file that --out has "
            "written, instead of computing them.",
            metavar="FILE",
        ),
    ] = None
    calib: Annotated[
        str | Path | None,
        Option(
            "Samples whose activations are used: as for quantize. Without it: built-in drawings."
        ),
    ] = None
    calib_samples: Annotated[int, Option("Number of samples.", minimum=1)] = 8
