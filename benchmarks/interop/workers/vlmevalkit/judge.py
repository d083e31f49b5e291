"""Prompts and scores of one version of VLMEvalKit, for the files and answers of vlpress.

    LMUData=FOLDER PYTHONPATH=DISTRIBUTION python start.py judge.py JOB RESULT

Runs in VLMEvalKit's environment and imports nothing of vlpress. FOLDER contains the TSV files under
their published names. JOB is a JSON file:

- `distribution`: name of the distribution that must be the one that is imported;
- `answers`: dataset -> set -> index -> answer, to be scored;
- `phrases`: options and an answer each, for the extraction alone.
"""

from __future__ import annotations

import hashlib
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import vlmeval
from PIL import Image
from vlmeval.dataset import (
    ImageMCQDataset,
    ImageVQADataset,
    MMMUDataset,
    MMMUProDataset,
    OCRBench,
    build_dataset,
)
from vlmeval.dataset.utils.vqa_eval import hit_calculate, process_line
from vlmeval.smp import dump, load
from vlmeval.utils.matching_util import can_infer
from vlmeval.vlm.qwen2_vl.prompt import Qwen2VLPromptMixin

METHODS = {
    "DocVQA_VAL": "anls",
    "ChartQA_TEST": "relaxed_accuracy",
    "TextVQA_VAL": "vqa_score",
}
Part = tuple[str, str]
"""A kind, text or image, with the text or the digest of the image's pixels."""


def main() -> None:
    """Read the job, write the result."""
    job_file, result_file = Path(sys.argv[1]), Path(sys.argv[2])
    job = json.loads(job_file.read_text("utf-8"))
    version = check_distribution(job["distribution"])
    result: dict[str, Any] = {"version": version, "prompts": {}, "scores": {}}
    for name, answer_sets in job["answers"].items():
        dataset = open_dataset(name)
        result["prompts"][name] = build_prompts(dataset, name)
        result["scores"][name] = {
            title: score(dataset, answers, result_file.parent / f"{name}-{title}")
            for title, answers in answer_sets.items()
        }
    result["letters"] = [
        can_infer(phrase["prediction"], dict(phrase["choices"])) or None
        for phrase in job["phrases"]
    ]
    result_file.write_text(json.dumps(result, ensure_ascii=False), "utf-8")


def check_distribution(name: str) -> str:
    """Check that the imported module belongs to a distribution; returns its version."""
    distribution = metadata.distribution(name)
    assert Path(str(distribution.locate_file("vlmeval"))) == Path(vlmeval.__file__).parent
    return distribution.version


def open_dataset(name: str) -> Any:
    """Open a local file by the class of its published name."""
    classes = (ImageMCQDataset, MMMUDataset, MMMUProDataset, OCRBench, ImageVQADataset)
    for dataset_class in classes:
        # With the digest of the published file, that file would be fetched in place of ours.
        dataset_class.DATASET_MD5 = {}
    return build_dataset(name)


def build_prompts(dataset: Any, name: str) -> dict[str, dict[str, list[Part]]]:
    """Build the prompts of all rows in both layouts: style -> index -> parts."""
    model = Qwen2VLPromptMixin()
    model.set_dump_image(dataset.dump_image)
    layouts = {"vlmevalkit-default": dataset.build_prompt}
    if model.use_custom_prompt(name):
        layouts["vlmevalkit-qwen2"] = lambda line: model.build_prompt(line, name)
    else:
        layouts["vlmevalkit-qwen2"] = dataset.build_prompt
    lines = [dataset.data.iloc[number] for number in range(len(dataset))]
    return {
        style: {str(line["index"]): list(map(describe, build(line))) for line in lines}
        for style, build in layouts.items()
    }


def describe(part: dict[str, str]) -> Part:
    """Describe a part of a prompt, an image by its pixels."""
    if part["type"] == "text":
        return "text", part["value"]
    image = Image.open(part["value"]).convert("RGB")
    content = f"{image.size}".encode() + image.tobytes()
    return part["type"], hashlib.sha256(content).hexdigest()


def score(dataset: Any, answers: dict[str, str], folder: Path) -> dict[str, Any]:
    """Score answers without a judge model.

    Args:
        dataset: the dataset, or more of it than is answered.
        answers: index -> answer.
        folder: empty or missing folder for its files.

    Returns:
        Its table and, except for OCRBench, the score of each index in [0, 1].
    """
    folder.mkdir(parents=True)
    data = dataset.data.drop(columns="image")
    data = data[[str(index) in answers for index in data["index"]]].copy()
    data["prediction"] = [answers[str(index)] for index in data["index"]]
    file = folder / "answers.xlsx"
    dump(data, str(file))
    table = dataset.evaluate(str(file), model="exact_matching", nproc=1)
    if isinstance(dataset, ImageVQADataset):
        hits = similarities(data, dataset.dataset_name)
        return {"table": table.to_dict("records"), "hits": hits}
    if isinstance(table, dict):
        # NVIDIA's distribution returns the sum and the number of questions of each name.
        sums = {key: v["sum"] if isinstance(v, dict) else v for key, v in table.items()}
        return {"table": sums, "hits": None}
    (record,) = folder.glob("*exact_matching_result.xlsx")
    rows = load(str(record))
    hits = {str(index): float(hit) for index, hit in zip(rows["index"], rows["hit"], strict=True)}
    return {"table": table.to_dict("records"), "hits": hits}


def similarities(data: Any, name: str) -> dict[str, float]:
    """Score each row of a benchmark of short answers, of which `evaluate` returns the mean."""
    data["answer"] = [str(answer) for answer in data["answer"]]  # as `evaluate` does
    lines = [data.iloc[number] for number in range(len(data))]
    hits = hit_calculate([process_line(line, method=METHODS[name]) for line in lines], name)
    return {str(line["index"]): float(hit) for line, hit in zip(lines, hits, strict=True)}


if __name__ == "__main__":
    main()
