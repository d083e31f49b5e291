"""VLMEvalKit reads the built-in benchmark files, builds the prompts and scores the stored answers.

Two distributions from before and after the change of its matching rules in August 2025 are
compared, each with the profile of its rules. They run in an environment of their own
(`workers/vlmevalkit/judge.py`), which exchanges JSON files with this script.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checks
from commands import ROOT
from vlmevalkit.comparisons import (
    MODEL,
    PHRASED,
    Answers,
    compare_letters,
    compare_prompts,
    compare_scores,
    split_by_hit,
)
from vlmevalkit.phrases import phrase_answers
from vlmevalkit.vectors import NAMES, compare_vectors, read_cases

import vlpress
from vlpress.eval.config import BUILTIN_BENCHES
from vlpress.eval.results import StoredTask, read_run
from vlpress.eval.tasks import open_task
from vlpress.eval.tasks.prompts import DEFAULT
from vlpress.eval.tasks.registry import BUILTIN, DATA
from vlpress.model.loading import resolve_model

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common.published_forms import (
    CHARTQA,
    DOCVQA,
    MMMU_PRO,
    MMMU_PRO_VISION,
    TEXTVQA,
    write_further_forms,
    write_published_forms,
)

HERE = Path(__file__).resolve().parent / "workers" / "vlmevalkit"
ENVIRONMENT = ROOT / ".interop" / "vlmevalkit"
VECTORS = ROOT / "tests" / "golden" / "benchmark_vectors.json"
HAND_WRITTEN = ROOT / "tests" / "golden" / "phrased_answers.json"
DATASETS = {
    "builtin-mmbench": "MMBench_DEV_EN",
    "builtin-mmbench-cn": "MMBench_DEV_CN",
    "builtin-mmmu": "MMMU_DEV_VAL",
    "builtin-ocrbench": "OCRBench",
    **{name: name for name in (DOCVQA, CHARTQA, TEXTVQA, MMMU_PRO, MMMU_PRO_VISION)},
}
"""Built-in files and the names under which VLMEvalKit opens them; five are made of the others."""
OWN_INFERENCE = "builtin-mmmu"


@dataclass(frozen=True)
class Version:
    """A distribution of VLMEvalKit."""

    name: str
    profile: str
    """Its matching rules, a profile of vlpress."""
    jpeg: bool
    """Whether it encodes images as JPEG before a model sees them."""
    folder: Path | None = None
    """Folder of a distribution that is not installed but unpacked."""

    def data(self, work: Path) -> Path:
        """Folder of the benchmark files, where it also writes images."""
        return work / f"{self.name}-data"

    def run(self, script: str, work: Path, *arguments: object) -> None:
        """Run a script of `workers/vlmevalkit` with this version on the built-in files.

        Raises:
            subprocess.CalledProcessError: the script fails.
        """
        environment = {
            **os.environ,
            "LMUData": str(self.data(work)),
            "PYTHONPATH": str(self.folder or ""),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [ENVIRONMENT / "bin" / "python", HERE / "start.py", script, *arguments]
        subprocess.run(list(map(str, command)), env=environment, cwd=work, check=True)


OLDER = Version("nvidia-vlmeval", "2024", jpeg=True)
NEWER = Version("ms-vlmeval", "2025-08", jpeg=False, folder=ENVIRONMENT / "ms-vlmeval")


def main() -> None:
    """Compare, then write the rows."""
    options = checks.parse(__doc__)
    if not (ENVIRONMENT / "bin" / "python").is_file():
        raise SystemExit(
            f"{ENVIRONMENT} is missing; `make .interop/vlmevalkit/.installed` makes it"
        )
    for version in (OLDER, NEWER):
        shutil.rmtree(version.data(options.work), ignore_errors=True)
        unpack(version.data(options.work))
    stored = evaluate(options.work / "answers")
    older = compare_version(OLDER, stored, options.work)
    newer = compare_version(NEWER, stored, options.work)
    compare_hand_made(NEWER, newer, options.work)
    newer.check(
        f"{MODEL}, {OWN_INFERENCE}",
        lambda: compare_inference(stored[OWN_INFERENCE], options.work),
    )
    newer.rows[:0] = older.rows
    newer.write(options.out)


def evaluate(out: Path) -> Mapping[str, StoredTask]:
    """Answer the built-in files in float32, unless that is done."""
    vlpress.evaluate(
        MODEL,
        out,
        bench=list(BUILTIN_BENCHES),
        prompt_style=DEFAULT,
        device="cpu",
        dtype="fp32",
        overwrite=True,
        progress=True,
    )
    return read_run(out).tasks


def unpack(folder: Path) -> None:
    """Write the files under their published names."""
    write_published_forms(folder)
    write_further_forms(folder)
    packed = (DATA / BUILTIN["builtin-mmbench-cn"][1]).read_bytes()
    (folder / f"{DATASETS['builtin-mmbench-cn']}.tsv").write_bytes(gzip.decompress(packed))


def compare_version(version: Version, stored: Mapping[str, StoredTask], work: Path) -> checks.Table:
    """Run one version on all files and compare."""
    data = version.data(work)
    tasks = {name: open_task(name, profile=version.profile, data_root=data) for name in DATASETS}
    sets: dict[str, dict[str, Answers]] = {}
    for name, task in tasks.items():
        sets[name] = {PHRASED: phrase_answers(task)}
        if name in stored:  # not the Chinese file: its scorer is that of the English one
            answers = {key: p.prediction for key, p in stored[name].predictions.items()}
            sets[name][MODEL] = answers
        if task.kind == "ocrbench":
            sets[name] |= split_by_hit(task, sets[name])
    phrases = json.loads(HAND_WRITTEN.read_text("utf-8"))["answers"]
    result = ask(version, sets, phrases, work)
    table = checks.Table("VLMEvalKit", f"{version.name} {result['version']}")
    for name, task in tasks.items():
        theirs = result["prompts"][DATASETS[name]]
        scores = result["scores"][DATASETS[name]]
        table.check(
            name,
            lambda name=name, theirs=theirs: compare_prompts(name, theirs, data, jpeg=version.jpeg),
        )
        table.check(
            name,
            lambda task=task, scores=scores, name=name: compare_scores(task, sets[name], scores),
        )
    table.check(
        f"rules {version.profile}",
        lambda: compare_letters(phrases, result["letters"], version.profile),
    )
    return table


def compare_hand_made(version: Version, table: checks.Table, work: Path) -> None:
    """Score the stored hand-made answers by its functions for single benchmarks."""
    cases = read_cases(VECTORS)
    folder = work / version.name
    job, result = folder / "vectors.json", folder / "vectors-result.json"
    job.write_text(json.dumps(cases, ensure_ascii=False), "utf-8")
    version.run("vectors.py", folder, job, result)
    scores = json.loads(result.read_text("utf-8"))
    for section, rows in cases.items():
        theirs = scores[section]
        table.check(
            NAMES[section],
            lambda section=section, rows=rows, theirs=theirs: compare_vectors(
                section, rows, theirs
            ),
        )


def ask(
    version: Version,
    sets: Mapping[str, Mapping[str, Answers]],
    phrases: Sequence[Mapping[str, Any]],
    work: Path,
) -> dict[str, Any]:
    """Run the judge of a version; returns its result, see `judge.py`."""
    folder = work / version.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    job, result = folder / "job.json", folder / "result.json"
    answers = {DATASETS[name]: answer_sets for name, answer_sets in sets.items()}
    task = {"distribution": version.name, "answers": answers, "phrases": phrases}
    job.write_text(json.dumps(task, ensure_ascii=False), "utf-8")
    version.run("judge.py", work, job, result)
    loaded: dict[str, Any] = json.loads(result.read_text("utf-8"))
    return loaded


def compare_inference(stored: StoredTask, work: Path) -> checks.Compared:
    """Compare the answers of VLMEvalKit's own inference."""
    result = work / NEWER.name / "own-inference.json"
    arguments = (resolve_model(MODEL), DATASETS[OWN_INFERENCE], result)
    NEWER.run("own_inference.py", work, *arguments)
    answers = json.loads(result.read_text("utf-8"))
    ours = {key: prediction.prediction for key, prediction in stored.predictions.items()}
    same = sum(answers.get(key) == answer for key, answer in ours.items())
    yield (
        "answers of its own inference in float32",
        f"{same} of {len(ours)} are the same",
        same == len(ours) == len(answers),
    )


if __name__ == "__main__":
    main()
