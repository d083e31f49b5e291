"""Ask onnxruntime-genai the questions of each job; runs in its environment, see `with_genai.py`.

python genai_worker.py JOBS.json
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as genai
import questions

TOP = 20
HAN = r"\u4e00-\u9fff"
"""A range in the regular expression of `tiny`'s tokenizer, which this runtime cannot compile. The
questions have no character of it."""


def main() -> None:
    """Run the jobs on the CPU."""
    questions.run_jobs(run, ("onnxruntime-genai", "onnxruntime"))


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Load an export and answer."""
    about = json.loads((Path(job["model"]) / "export.json").read_text(encoding="utf-8"))
    rows = questions.read(job["questions"])
    with tempfile.TemporaryDirectory() as folder:
        link_without_han(Path(job["model"]), Path(folder))
        engine = Engine(folder)
        answers = {key: engine.answer(row, job["max_new_tokens"]) for key, row in rows.items()}
    layers = Counter(layer["operator"] for layer in about["layers"].values())
    return {"layers": dict(layers), "answers": answers}


def link_without_han(source: Path, folder: Path) -> None:
    """Link the files of an export into an empty folder; its tokenizer is changed, see `HAN`."""
    for path in source.iterdir():
        (folder / path.name).symlink_to(path)
    name = "tokenizer.json"
    escaped = HAN.replace("\\", "\\\\")  # as in JSON
    text = (source / name).read_text(encoding="utf-8")
    changed = text.replace(f"[{escaped}]{{1,2}}|", "").replace(escaped, "")
    (folder / name).unlink()
    (folder / name).write_text(changed, encoding="utf-8")


class Engine:
    """A loaded export.

    Args:
        folder: of the export.
    """

    def __init__(self, folder: str) -> None:
        self.model = genai.Model(folder)
        self.tokenizer = genai.Tokenizer(self.model)
        self.processor = self.model.create_multimodal_processor()

    def answer(self, row: list[questions.Part], limit: int) -> dict[str, Any]:
        """Text, prompt length, and log-probabilities of the first token by token id."""
        content = [
            {"type": "text", "text": value} if kind == "text" else {"type": "image"}
            for kind, value in row
        ]
        messages = json.dumps([{"role": "user", "content": content}])
        prompt = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        files = [base64.b64decode(value) for kind, value in row if kind == "image"]
        inputs = self.processor(prompt, images=genai.Images.open_bytes(*files))
        length = inputs["input_ids"].as_numpy().shape[1]
        settings = genai.GeneratorParams(self.model)
        settings.set_search_options(max_length=length + limit)
        generator = genai.Generator(self.model, settings)
        generator.set_inputs(inputs)
        logits = np.asarray(generator.get_logits()).reshape(-1).astype(np.float64)
        while not generator.is_done():
            generator.generate_next_token()
        first = logits - np.logaddexp.reduce(logits)
        tops = np.argsort(-first)[:TOP]
        return {
            "text": self.tokenizer.decode(generator.get_sequence(0)[length:]),
            "prompt_tokens": length,
            "first": {int(token): float(first[token]) for token in tops},
        }


if __name__ == "__main__":
    main()
