"""Arguments are checked, and words completed, in a process that never imports torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from PIL import Image

from vlpress.model.built_in import built_in_names

REFUSED = {
    "plan tinny": "did you mean tiny",
    "plan runs/checkpont": "did you mean runs/checkpoint?",
    "plan ./nowhere/model": "nowhere/model: no such folder",
    "plan runs/checkpoint": "model_type",
    "plan tiny -r w4a16-aqw": "did you mean w4a16-awq",
    "plan tiny -r broken.toml": "broken.toml: not valid TOML",
    "plan tiny -r wrong.toml": "step[0].bits",
    "quantize tiny -o out --calib sample.jsonl": "did you mean samples.jsonl?",
    "run -o out --bench builtin-mmbnch": "did you mean builtin-mmbench",
    "run -o out --bench OCRBench=ocr.tsv": "did you mean ocrb.tsv?",
    "run runs/model -o out": "--bench MMBench_DEV_EN=PATH",
    "eval tinny": "did you mean tiny",
    "eval tiny --dtype bf61": "allowed: auto, bf16, fp16, fp32",
    "generate tinny hello": "did you mean tiny",
    "generate tiny hello --image phto.png": "did you mean photo.png?",
    "generate tiny hello --image photo.png --image empty.png": "empty.png: cannot be decoded",
    "generate tiny hello --image runs": "runs",
    "generate tiny hello --image https://host/photo.png": "https://host/photo.png",
    "generate tiny hello --video clp.mp4": "did you mean clip.mp4?",
    "generate tiny hello --video clip.mp4": "clip.mp4: cannot be decoded",
    "split mne.csv --calib 1": "did you mean mine.csv?",
    "split empty.png --calib 1": "a .png file",
    "split runs --calib 1": "runs is a folder",
    "plan tiny --format compresed-tensors": "did you mean compressed-tensors?",
    "export runs/checkpont -o out --format gptq": "did you mean runs/checkpoint?",
    "inspect runs/checkpont": "did you mean runs/checkpoint?",
    "bench model --model tinny": "did you mean tiny",
    "search tiny -o found.toml": "--budget SIZE",
    "search tiny --budget 2.4XB -o found.toml": "allowed: a number of bytes with a unit",
    "search tiny --budget 2GB -o broken.toml": "broken.toml: exists",
    "search tinny --budget 2GB -o found.toml": "did you mean tiny",
    "pln tiny": "plan",
    "plan tiny --recpe w4a16": "--recipe",
}
HELP = "run plan search split quantize export eval compare generate inspect push bench".split()
DONE = "split mine.csv --calib 1 -o parts --json"
"""A verb that needs no torch."""
COMPLETED = {
    "pl": {"plan"},
    "plan --rec": {"--recipe"},
    "plan --recipe w4a16-a": {"w4a16-all", "w4a16-awq"},
    "plan ti": set(built_in_names()),
    "eval tiny --bench builtin-mmb": {"builtin-mmbench"},
    "quantize tiny --format gptq": {"gptq", "gptq_v2"},
    "plan tiny --dtype fp": {"fp16", "fp32"},
}
SCRIPT = """
import json, sys
from typer.testing import CliRunner
from vlpress.cli.main import app
results = {}
commands, words = json.load(sys.stdin)
for line in commands:
    done = CliRunner().invoke(app, line.split(), prog_name="vlpress")
    results[line] = done.exit_code, done.stdout, done.stderr
for line in words:
    shell = {"_VLPRESS_COMPLETE": "complete_bash", "COMP_WORDS": f"vlpress {line}"}
    shell["COMP_CWORD"] = str(len(line.split()))
    done = CliRunner().invoke(app, [], prog_name="vlpress", env=shell)
    results[line] = done.exit_code, done.stdout, done.stderr
print(json.dumps([results, "torch" in sys.modules]))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    folder = tmp_path_factory.mktemp("preflight")
    (folder / "runs" / "checkpoint").mkdir(parents=True)
    (folder / "runs" / "checkpoint" / "config.json").write_text('{"model_type": "llama"}')
    for name in ("samples.jsonl", "ocrb.tsv", "empty.png", "clip.mp4"):
        (folder / name).touch()
    for name, colour in (("photo.png", "red"), ("other.png", "blue")):
        Image.new("RGB", (28, 28), colour).save(folder / name)
    table = "image,question,answer\nphoto.png,Which colour?,red\nother.png,Which colour?,blue\n"
    (folder / "mine.csv").write_text(table)
    (folder / "broken.toml").write_text("[[step")
    (folder / "wrong.toml").write_text('[[step]]\nmethod = "gptq"\nbits = 17\n')
    commands = [*REFUSED, *(f"{verb} -h" for verb in HELP), DONE]
    lines = json.dumps([commands, list(COMPLETED)])
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(
        command, input=lines, capture_output=True, text=True, check=True, cwd=folder
    )
    outcomes, is_torch_loaded = json.loads(done.stdout)
    assert not is_torch_loaded
    return {line: tuple(outcome) for line, outcome in outcomes.items()}


def test_unusable_arguments_are_refused_without_torch(
    results: dict[str, tuple[int, str, str]],
) -> None:
    for line, message in REFUSED.items():
        code, output, error = results[line]
        assert (code, output) == (2, ""), line
        assert error.startswith("vlpress: error: ") and error.count("\n") == 1, line
        assert message in error, line


def test_every_verb_has_a_short_help_option(results: dict[str, tuple[int, str, str]]) -> None:
    for verb in HELP:
        code, output, _ = results[f"{verb} -h"]
        assert code == 0 and f"Usage: vlpress {verb} " in output


def test_a_shell_completes_verbs_options_and_values(
    results: dict[str, tuple[int, str, str]],
) -> None:
    for line, expected in COMPLETED.items():
        code, output, _ = results[line]
        assert code == 0 and set(output.split()) == expected, line


def test_a_file_is_split_without_torch(results: dict[str, tuple[int, str, str]]) -> None:
    code, output, progress = results[DONE]
    assert code == 0 and json.loads(output)["questions"] == {"calib": 1, "eval": 1}
    assert "mine.csv" in progress and "torch" not in progress
