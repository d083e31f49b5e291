"""VLMEvalKit reads the built-in benchmark files, builds the prompts and scores the stored answers.

Two distributions from before and after the change of its matching rules in August 2025 are
compared, each with the profile of its rules. They run in an environment of their own
(`vlmevalkit/judge.py`), which exchanges JSON files with this script.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checks
from commands import ROOT
from PIL import Image

import vlpress
from vlpress.eval.config import BUILTIN_BENCHES
from vlpress.eval.results import StoredTask, read_run
from vlpress.eval.tasks import docvqa, open_task
from vlpress.eval.tasks.extract import extract_choice
from vlpress.eval.tasks.files.image_store import StoredImage
from vlpress.eval.tasks.mmbench import ROTATION
from vlpress.eval.tasks.mmmu import as_choice
from vlpress.eval.tasks.prompts import DEFAULT, STYLES
from vlpress.eval.tasks.registry import BUILTIN, DATA
from vlpress.eval.tasks.task import Fields, Task, TaskScore
from vlpress.model.loading import resolve_model

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common.published_forms import DOCVQA, write_published_forms

HERE = Path(__file__).resolve().parent / "vlmevalkit"
ENVIRONMENT = ROOT / ".interop" / "vlmevalkit"
HAND_WRITTEN = ROOT / "tests" / "golden" / "phrased_answers.json"
MODEL, PHRASED = "tiny", "phrased"
"""Sets of answers: of the model, and right and wrong ones in other words."""
DATASETS = {
    "builtin-mmbench": "MMBench_DEV_EN",
    "builtin-mmbench-cn": "MMBench_DEV_CN",
    "builtin-mmmu": "MMMU_DEV_VAL",
    "builtin-ocrbench": "OCRBench",
    DOCVQA: DOCVQA,
}
"""Built-in files and the names under which VLMEvalKit opens them; DocVQA is made of OCRBench."""
OWN_INFERENCE = "builtin-mmmu"

CHOICE_PHRASES = (
    "{letter}",
    "{letter}. {text}",
    "The answer is ({letter}).",
    "{letter}, because nothing else in the image comes close to it",
    "{text}",
    "The image shows {text}, and none of the others can be seen in any part of the image at all",
    "A closer look at the image shows {text}",
    "It is not possible to tell.",
    "Z",
)
TEXT_PHRASES = (
    "{text}",
    "The text reads: {upper}.",
    "{spaced}",
    "\n{text}\n",
    "It is not possible to read it.",
)
ROUNDING = 1e-9  # another order of summation
WRONG_EVERY = 7  # every seventh question is answered with another option

Part = tuple[str, str]
Answers = Mapping[str, str]


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
        """Run a script of the folder `vlmevalkit` with this version on the built-in files.

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


def ask(
    version: Version,
    sets: Mapping[str, Mapping[str, Answers]],
    phrases: Sequence[Mapping[str, Any]],
    work: Path,
) -> dict[str, Any]:
    """Run the judge of a version; returns its result, see `vlmevalkit/judge.py`."""
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


def phrase_answers(task: Task) -> dict[str, str]:
    """Answers in the words of `CHOICE_PHRASES` or `TEXT_PHRASES`, in turn by question."""
    return {
        fields["id"]: phrase_text(fields, number)
        if task.kind in ("ocrbench", "docvqa")
        else phrase_choice(fields, int(fields["id"]) % ROTATION)
        for number, fields in enumerate(task.fields)
    }


def phrase_choice(fields: Fields, number: int) -> str:
    """Name the right option, or another one for every seventh number."""
    choices, letter = as_choice(fields)
    if number % WRONG_EVERY == 0:
        letter = next(other for other in choices if other != letter)
    phrase = CHOICE_PHRASES[number % len(CHOICE_PHRASES)]
    return phrase.format(letter=letter, text=choices[letter])


def phrase_text(fields: Fields, number: int) -> str:
    """Write the first accepted answer."""
    text = fields["answers"][0]
    phrase = TEXT_PHRASES[number % len(TEXT_PHRASES)]
    return phrase.format(text=text, upper=text.upper(), spaced=" ".join(text))


def split_by_hit(task: Task, sets: Mapping[str, Answers]) -> dict[str, dict[str, str]]:
    """Split each set of answers into the right and the wrong ones.

    VLMEvalKit's scorer of OCRBench returns sums only. If it counts all of the first part and none
    of the second, it agrees on every answer.
    """
    parts: dict[str, dict[str, str]] = {}
    for title, answers in sets.items():
        right = {unit.id for unit in task.score(answers).units if unit.correct}
        parts[f"{title}-right"] = {key: text for key, text in answers.items() if key in right}
        parts[f"{title}-wrong"] = {key: text for key, text in answers.items() if key not in right}
    return parts


def compare_prompts(
    name: str, theirs: Mapping[str, Mapping[str, Sequence[Part]]], data: Path, *, jpeg: bool
) -> checks.Compared:
    """Compare rows, texts and pixels of the prompts in both layouts.

    Args:
        name: a key of `DATASETS`.
        theirs: layout -> id -> prompt.
        data: folder of the files.
        jpeg: whether images may have been encoded as JPEG.
    """
    same_rows, prompts, texts, pixels, encoded = True, 0, 0, 0, 0
    for style in STYLES:
        items = {
            item.id: item for item in open_task(name, prompt_style=style, data_root=data).items
        }
        same_rows &= list(theirs[style]) == list(items)
        prompts += len(items)
        for key, item in items.items():
            parts = [(kind, value) for kind, value in theirs[style].get(key, ())]
            texts += texts_of(parts) == texts_of(map(describe, item.messages[0]["content"]))
            images = [value for kind, value in parts if kind == "image"]
            exact = images == [digest_pixels(image.open()) for image in item.images]
            pixels += exact
            encoded += exact or images == list(map(digest_jpeg, item.images))
    yield "rows", f"{prompts // len(STYLES)}, in the same order", same_rows
    yield "texts of both layouts", f"{texts} of {prompts} prompts equal", texts == prompts
    result = f"{pixels} of {prompts} prompts equal"
    if jpeg:
        result += f", {encoded} after encoding as JPEG"
    yield "pixels", result, (encoded if jpeg else pixels) == prompts


def texts_of(parts: Iterable[Part]) -> list[str]:
    """Texts of a prompt, with an empty one in place of each image."""
    parts = [part for part in parts if part != ("text", "")]
    return [text if kind == "text" else "" for kind, text in parts]


def describe(part: Mapping[str, Any]) -> Part:
    """Describe a part of a prompt as `texts_of` reads it."""
    return ("text", part["text"]) if part["type"] == "text" else ("image", "")


def digest_pixels(image: Image.Image) -> str:
    """Digest of size and pixels, as in `vlmevalkit/judge.py`."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def digest_jpeg(image: StoredImage) -> str:
    """Digest of an image's pixels after encoding as JPEG with Pillow's default quality."""
    encoded = io.BytesIO(encode(image.open(), "JPEG"))
    return digest_pixels(Image.open(encoded).convert("RGB"))


def encode(image: Image.Image, format: str) -> bytes:
    """Encode an image with Pillow's defaults."""
    buffer = io.BytesIO()
    image.save(buffer, format=format)
    return buffer.getvalue()


def compare_scores(
    task: Task, sets: Mapping[str, Answers], theirs: Mapping[str, Any]
) -> checks.Compared:
    """Compare the results tables and every question, for each set of answers."""
    for title in [title for title in (MODEL, PHRASED) if title in sets]:
        score = task.score(sets[title])
        named = f"of {MODEL}" if title == MODEL else "in other words"
        entry = theirs[title]
        if entry["hits"] is None:
            same = score.table.items() <= entry["table"].items()
            points = [
                theirs[f"{title}-{part}"]["table"]["Final Score"] for part in ("right", "wrong")
            ]
            agreed = points[0] + (len(sets[f"{title}-wrong"]) - points[1])
        else:
            same = tables_equal(entry["table"], score)
            hits = entry["hits"]
            agreed = sum(abs(hits.get(u.id, -1) - u.value) < ROUNDING for u in score.units)
        number = len(score.units)
        scores = f"score {score.percent:.4f}, {agreed} of {number} questions as here"
        if not same:
            scores += ", another table"
        yield f"scores of answers {named}", scores, same and agreed == number


def tables_equal(records: Sequence[Mapping[str, Any]], score: TaskScore) -> bool:
    """Whether a results table has the same splits, names and numbers; of DocVQA, the same mean."""
    if score.metric == docvqa.METRIC:
        return abs(records[0]["Overall"] - score.percent) < ROUNDING
    theirs = {
        str(record["split"]): {k: v for k, v in record.items() if k != "split"}
        for record in records
    }
    ours = {split: dict(row) for split, row in score.table.items()}
    return theirs.keys() == ours.keys() and all(
        theirs[split].keys() == ours[split].keys()
        and all(abs(theirs[split][key] - value) < ROUNDING for key, value in ours[split].items())
        for split in ours
    )


def compare_letters(
    phrases: Sequence[Mapping[str, Any]], letters: Sequence[str | None], profile: str
) -> checks.Compared:
    """Compare the extracted options of hand-written answers on which the profiles differ."""
    ours = [extract_choice(p["prediction"], p["choices"], profile) for p in phrases]
    agreed = sum(a == b for a, b in zip(letters, ours, strict=True))
    differing = sum(p["2024"] != p["2025-08"] for p in phrases)
    result = f"{agreed} of {len(ours)} as here; {differing} differ between 2024 and 2025-08"
    yield "options of hand-written answers", result, agreed == len(ours) and differing > 0


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
