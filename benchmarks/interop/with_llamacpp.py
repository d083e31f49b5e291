"""llama.cpp answers questions with GGUF files of vlpress, on the CPU.

The models have the weights of built-in ones under a configuration that llama.cpp computes
(`common/gguf_models.py`); both sides compute with it. Images are resized beforehand to sides of
which llama.cpp changes nothing.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import checks
import commands
import numpy as np
import torch
import torch.nn.functional as F
from answering_engines import jobs
from PIL import Image
from torch import Tensor

from vlpress.calib.samples.draw import load_samples
from vlpress.model.generation import generate
from vlpress.model.processing.chat_templates import render_chat
from vlpress.model.processing.images import open_image
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.loading import open_model
from vlpress.quant.deployment.gguf.format import PREFIX

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common.gguf_models import MODELS, Model, make_model

SIZES = (*[(112, 112)] * 4, (336, 224))
"""Width and height of the images in turn, in pixels: that of the drawings, which is one window of
llama.cpp, and one of several windows."""
QUESTIONS = 50
ALLOWED_DIFFERENT = 2
"""Answers that may differ where llama.cpp rounds activations."""
SEED = 3
PYTHON = commands.ROOT / ".interop" / "llama-cpp-python" / "bin" / "python"
LONGEST_ANSWER = 64
PLACEHOLDER, MARKER = "<|vision_start|><|image_pad|><|vision_end|>", "<__media__>"
BOUND = 1e-3
"""Of the largest feature and of the largest logit, with weights in float32 and llama.cpp's GELU."""
FLOAT = "float"
"""Folder of the float model's files."""


@dataclass(frozen=True)
class Case:
    """A checkpoint of a model and how it is exported."""

    recipe: str
    """Empty: the float model."""
    float_type: str = ""
    """Option of the export; empty: none."""

    @property
    def is_exact(self) -> bool:
        """Whether llama.cpp computes in float32, without rounded activations."""
        return not self.recipe and self.float_type == "f32"


CASES = (Case("", "f32"), Case("w8a16"), Case("w4a16"))


def main() -> None:
    """Compare, then write the rows."""
    options = checks.parse(__doc__)
    options.work.mkdir(parents=True, exist_ok=True)
    table = checks.Table("llama.cpp", "")
    for model in MODELS:
        folder = make_model(model, options.work / "models" / model.source)
        for case in CASES:
            label = f"gguf {case.recipe or 'float'} ({model.name})"
            check = partial(compare, model, case, folder, options, table)
            table.check(label, check)
        table.check(f"imatrix ({model.name})", partial(compare_quantized, folder, options.work))
    table.write(options.out)


def compare(
    model: Model, case: Case, source: Path, options: Any, table: checks.Table
) -> checks.Compared:
    """Export a checkpoint, let both sides answer, and compare."""
    work = options.work / model.source / (case.recipe or FLOAT)
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = source
    if case.recipe:
        checkpoint = work / "checkpoint"
        commands.quantize(source, case.recipe, "compressed-tensors", checkpoint)
    flags = ("--float-type", case.float_type) if case.float_type else ()
    commands.export(checkpoint, "gguf", work / "export", *flags)
    processor = Processor.from_folder(checkpoint)
    prompts = write_questions(processor, work / "questions.json")
    answers, arrays = ask_engine(work, processor, table)

    reference = open_model(checkpoint, device="cpu", dtype="fp32")
    yield file_sizes(work / "export")
    yield compare_tokens(prompts, answers, processor.config.image_token_id)
    with torch.inference_mode():
        yield from compare_numbers("", reference, prompts, arrays, None)
        if case.is_exact:
            with gelu_of_ggml():
                yield from compare_numbers(", its GELU", reference, prompts, arrays, BOUND)
        texts = {
            key: processor.decode(answer.token_ids)
            for key, prompt in prompts.items()
            for answer in generate(
                reference, [prompt], max_new_tokens=LONGEST_ANSWER, stop_ids=processor.stop_ids
            )
        }
    theirs = {key: processor.decode(row["answer"]) for key, row in answers.items()}
    yield compare_texts(texts, theirs, 0 if case.is_exact else ALLOWED_DIFFERENT)


def compare_numbers(
    remark: str,
    model: QwenVL,
    prompts: Mapping[str, Prompt],
    arrays: Mapping[str, np.ndarray],
    bound: float | None,
) -> checks.Compared:
    """Compare features of the images and logits of the first token."""
    features = {key: _features(model, prompt) for key, prompt in prompts.items()}
    given = {key: arrays[f"{key}/features"] for key in prompts}
    yield compare_arrays(f"image features{remark}", features, given, bound)
    logits = {key: model([prompt], None, [1])[0][-1] for key, prompt in prompts.items()}
    given = {key: arrays[f"{key}/logits"] for key in prompts}
    yield compare_arrays(f"logits of the first token{remark}", logits, given, bound)


@contextmanager
def gelu_of_ggml() -> Iterator[None]:
    """Compute GELU as llama.cpp does on the CPU, for the length of a `with` block.

    In both towers' mergers and in the blocks of Qwen3-VL it is the tanh form, looked up by inputs
    rounded to fp16 in a table of fp16 numbers (ggml's `ggml_vec_gelu_f32`).
    """
    exact = F.gelu

    def looked_up(x: Tensor, approximate: str = "none") -> Tensor:
        values = exact(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, values))

    with mock.patch.object(F, "gelu", looked_up):
        yield


def write_questions(processor: Processor, path: Path) -> dict[str, Prompt]:
    """Write questions about single drawings for the engine; return our prompts for them."""
    rows: dict[str, Any] = {}
    prompts: dict[str, Prompt] = {}
    for sample in load_samples(None, n=4 * QUESTIONS, seed=SEED):
        content = sample.messages[0]["content"]
        images = [part["image"] for part in content if part["type"] == "image"]
        if len(sample.messages) > 1 or len(images) != 1 or len(rows) == QUESTIONS:
            continue
        size = SIZES[len(rows) % len(SIZES)]
        pixels = open_image(images[0]).resize(size, Image.Resampling.BICUBIC)
        texts = [part for part in content if part["type"] == "text"]
        stripped = [{"role": "user", "content": [{"type": "image"}, *texts]}]
        asked = [{"role": "user", "content": [{"type": "image", "image": pixels}, *texts]}]
        prompts[sample.id] = processor.encode(asked)
        text = render_chat(processor.tokenizer, stripped, add_generation_prompt=True)
        rows[sample.id] = [("text", text.replace(PLACEHOLDER, MARKER)), ("image", _png(pixels))]
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return prompts


def _png(image: Image.Image) -> str:
    stored = io.BytesIO()
    image.save(stored, "PNG")
    return base64.b64encode(stored.getvalue()).decode()


def ask_engine(
    work: Path, processor: Processor, table: checks.Table
) -> tuple[dict[str, Any], Mapping[str, np.ndarray]]:
    """Run the engine's script; return its answers and arrays by question."""
    worker = jobs.Worker(
        engine=table.engine,
        python=PYTHON,
        scripts=[jobs.WORKERS / name for name in ("llamacpp_worker.py", "questions.py")],
        constraints=commands.ROOT / "constraints-llama-cpp-python.txt",
        environment={},
        describe=lambda result: "",
        version=lambda versions: "",
    )
    files = work / "export"
    job = {
        "name": work.name,
        "text": str(files / "export.gguf"),
        "mmproj": str(files / f"{PREFIX}export.gguf"),
        "questions": str(work / "questions.json"),
        "out": str(work / "answers.json"),
        "max_new_tokens": LONGEST_ANSWER,
        "stop_ids": sorted(processor.stop_ids),
        "refusal": None,
    }
    digest = commands.file_digest(work / "questions.json")
    job["key"] = worker.key(files, {**job, "questions": digest})
    worker.run([job], work)
    result = jobs.read_result(job) or {"error": "the script wrote no result"}
    if "error" in result:
        raise ValueError(result["error"])
    table.version = f"{result['versions']['llama_cpp_python']} (llama-cpp-python)"
    return result["answers"], np.load(work / "answers.npz")


def compare_quantized(source: Path, work: Path) -> checks.Compared:
    """K-quants that llama.cpp makes with an importance matrix, and without one."""
    files = work / source.name / FLOAT
    matrix, out = files / "imatrix.gguf", files / "errors.json"
    commands.imatrix(source, matrix)
    script = jobs.WORKERS / "llamacpp_quantizer.py"
    command = [PYTHON, script, files / "export" / "export.gguf", matrix, files, out]
    environment = jobs.clean_environment({})
    subprocess.run(list(map(str, command)), env=environment, cwd=files, check=True)
    errors = json.loads(out.read_text(encoding="utf-8"))
    ratio = errors["weighted"] / errors["plain"]
    result = (
        f"{errors['tensors']} tensors in {', '.join(errors['types'])}: errors weighted by the mean "
        f"squares are {ratio:.3f} times those without the matrix"
    )
    yield "K-quants with the importance matrix", result, ratio < 1


def file_sizes(folder: Path) -> tuple[str, str, bool]:
    """Sizes of the two files, by type of their weights."""
    described = json.loads((folder / "export.json").read_text())
    parts = [
        f"{name}: " + ", ".join(f"{kind} {of['bytes'] / 2**20:.2f}" for kind, of in part.items())
        for name, part in (("text", described["text"]), ("tower", described["tower"]))
    ]
    total = sum(file["bytes"] for file in described["files"].values()) / 2**20
    return "size in MiB", f"{total:.2f}; {'; '.join(parts)}", True


def compare_tokens(
    prompts: Mapping[str, Prompt], answers: Mapping[str, Any], image_token: int
) -> tuple[str, str, bool]:
    """Tokens of the prompts, those of images included."""
    same = sum(
        prompt.input_ids.tolist()
        == [image_token if token < 0 else token for token in answers[key]["prompt"]]
        for key, prompt in prompts.items()
    )
    return "tokens of the prompts", f"{same}/{len(prompts)} equal", same == len(prompts)


def _features(model: QwenVL, prompt: Prompt) -> Tensor:
    """Features of a prompt's image, those of DeepStack after the others, `[tokens, n * hidden]`."""
    (features,) = model.encode(prompt.visuals)
    return torch.cat(list(features.values()), dim=-1)


def compare_arrays(
    name: str,
    expected: Mapping[str, Tensor],
    given: Mapping[str, np.ndarray],
    bound: float | None,
) -> tuple[str, str, bool]:
    """Differences of each question's values by their norm, and of single ones by the largest.

    Args:
        name: of the comparison.
        expected: values by question.
        given: those of the engine.
        bound: of the norm of the difference over the norm; None: it is only shown.
    """
    norms, singles = [], []
    for key, values in expected.items():
        gap = values.float() - torch.from_numpy(given[key])
        norms.append(float((gap.norm() / values.float().norm()).nan_to_num(torch.inf)))
        singles.append(float(gap.abs().max() / values.float().abs().max()))
    result = (
        f"by norm {max(norms):.1e}, mean {np.mean(norms):.1e}; "
        f"single values up to {max(singles):.1e} of the largest"
    )
    return name, result, bound is None or max(norms) <= bound


def compare_texts(
    expected: Mapping[str, str], given: Mapping[str, str], allowed: int
) -> tuple[str, str, bool]:
    """Greedy answers; at most `allowed` of them may differ."""
    odd = [key for key, text in expected.items() if given[key] != text]
    examples = "; ".join(f"{given[key]!r} for {expected[key]!r}" for key in odd[:2])
    result = f"{len(expected) - len(odd)}/{len(expected)} equal"
    return "greedy answers", f"{result}{examples and f': {examples}'}", len(odd) <= allowed


if __name__ == "__main__":
    main()
