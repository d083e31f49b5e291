"""Answers of a model by VLMEvalKit's own inference, in float32 on the CPU.

    LMUData=FOLDER PYTHONPATH=DISTRIBUTION python start.py own_inference.py MODEL DATASET RESULT

Its class for Qwen2-VL and Qwen2.5-VL requires a GPU and flash attention; both requirements are
lifted, and images are resized by Pillow as in vlpress. Its sampling considers only the most
probable token.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import judge
import torch
from transformers import AutoImageProcessor, BatchFeature, Qwen2_5_VLForConditionalGeneration
from vlmeval.vlm.qwen2_vl import model as qwen2_vl

MAX_PIXELS = 16384 * 28 * 28  # its own setting; images of the built-in files are far smaller
MAX_NEW_TOKENS = 64  # the limit of vlpress for the built-in files
PROGRESS = 20


def main() -> None:
    """Answer all rows, write the answers."""
    model_folder, name, result_file = sys.argv[1:]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    allow_cpu()
    dataset = judge.open_dataset(name)
    model = qwen2_vl.Qwen2VLChat(
        model_folder,
        max_pixels=MAX_PIXELS,
        max_new_tokens=MAX_NEW_TOKENS,
        use_custom_prompt=False,
    )
    model.set_dump_image(dataset.dump_image)
    answers = {}
    for number in range(len(dataset)):
        line = dataset.data.iloc[number]
        prompt = dataset.build_prompt(line)
        answers[str(line["index"])] = model.generate(message=prompt, dataset=name)
        if number % PROGRESS == 0:
            print(f"{number} of {len(dataset)} answered", flush=True)
    Path(result_file).write_text(json.dumps(answers, ensure_ascii=False), "utf-8")


def allow_cpu() -> None:
    """Replace what its inference requires of the machine."""
    load = Qwen2_5_VLForConditionalGeneration.from_pretrained

    def load_float32(folder: str, **_options: object) -> Any:
        return load(folder, dtype=torch.float32, attn_implementation="sdpa")

    Qwen2_5_VLForConditionalGeneration.from_pretrained = load_float32
    AutoImageProcessor.from_pretrained = partial(AutoImageProcessor.from_pretrained, backend="pil")
    BatchFeature.to = lambda self, *_device: self
    qwen2_vl.get_gpu_memory = lambda: [1]


if __name__ == "__main__":
    main()
