from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eval_files import mmbench_rows, write_tsv
from eval_models import right, small_model
from tiny_models import write_checkpoint_folder
from workbench import NAMES, Workbench, lossy, reseal

import vlpress
from vlpress.eval import compare, compare_many
from vlpress.eval.report.markdown import render_report
from vlpress.eval.report.report import build_report
from vlpress.eval.report.words.sentences import caveats, simulation_caveat
from vlpress.eval.results import read_run
from vlpress.model.checkpoint import CheckpointReader

pytestmark = pytest.mark.usefixtures("packaged")

# Keys that other programs rely on.
TOP = {"schema", "base", "candidate", "verdict", "margin", "synthetic", "benchmarks"}
TOP |= {"fidelity", "size", "speed", "memory", "fingerprint"}
BENCHMARK = {"metric", "n", "n_rows", "base", "candidate", "delta", "ci95", "ci_kind", "lower95"}
BENCHMARK |= {"upper95", "mcnemar_p", "verdict", "flips", "parse_failures", "categories"}
FLIPS = {"right_to_wrong", "wrong_to_right", "wrong_to_wrong"}
FIDELITY = {"tokens", "kl_kind", "kl_mean", "kl_p99", "top1_agreement", "per_benchmark"}
SIZE = {"base_bytes", "candidate_bytes", "bits_per_weight"}


def build(base: Path, cand: Path, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report and the flips of two runs, without writing them."""
    return build_report(read_run(base), read_run(cand), **options)


def test_report_has_the_schema(bench: Workbench) -> None:
    base, cand = bench.run("base"), bench.run("cand", lossy("1000241", "3"))
    report = compare(base, cand, bench.folder / "report")
    assert set(report) >= TOP
    assert set(report["size"]) >= SIZE
    for entry in report["benchmarks"].values():
        assert set(entry) >= BENCHMARK
        assert set(entry["flips"]) == FLIPS
        assert set(entry["parse_failures"]) == {"base", "candidate"}
    assert (report["schema"], report["base"], report["candidate"]) == (1, "base", "cand")
    assert report["synthetic"] is True
    assert report["fidelity"] is None
    stored = json.loads((bench.folder / "report" / "report.json").read_text("utf-8"))
    assert stored == json.loads(json.dumps(report))


def test_bytes_by_part_are_in_every_form_of_the_report(bench: Workbench) -> None:
    base, cand = bench.run("base"), bench.run("cand", lossy("3"))
    report = compare(base, cand, bench.folder / "report")
    sizes = report["size"]
    assert sizes["base_parts"] == sizes["candidate_parts"]
    reader = CheckpointReader(bench.source)
    assert sum(sizes["base_parts"].values()) == sum(map(reader.nbytes, reader.names()))
    assert all(sizes["base_parts"][part] for part in ("decoder", "tower", "embedding"))
    text = (bench.folder / "report" / "report.md").read_text("utf-8")
    assert "of which decoder" in text and "of which embedding" in text
    page = (bench.folder / "report" / "report.html").read_text("utf-8")
    assert "by part of the model" in page and "of which tower" in page
    for run in (base, cand):  # evaluations by earlier versions do not have them
        info = json.loads((run / "run.json").read_text("utf-8"))
        del info["model"]["parts"]
        (run / "run.json").write_text(json.dumps(info), "utf-8")
        reseal(run)
    older = compare(base, cand, bench.folder / "older")
    assert older["size"]["base_parts"] is None
    assert "of which" not in (bench.folder / "older" / "report.md").read_text("utf-8")


def test_candidates_of_unequal_size_are_refused(bench: Workbench) -> None:
    paths = [bench.run(name) for name in ("base", "small", "large")]
    for path, size in zip(paths, (4000, 1000, 1051), strict=True):
        info = json.loads((path / "run.json").read_text("utf-8"))
        info["model"]["bytes"] = size
        (path / "run.json").write_text(json.dumps(info), "utf-8")
        reseal(path)
    base, small, large = paths
    options: dict[str, Any] = {"out": bench.folder / "report", "same_bytes": True}
    with pytest.raises(ValueError, match=r"large has 1,051 bytes, 5\.1 % more .*small.*: 5 %"):
        vlpress.compare(base, [small, large], **options)
    with pytest.raises(ValueError, match="two or more"):
        vlpress.compare(base, small, **options)
    assert not (bench.folder / "report").exists()
    info = json.loads((large / "run.json").read_text("utf-8"))
    info["model"]["bytes"] = 1050
    (large / "run.json").write_text(json.dumps(info), "utf-8")
    reseal(large)
    assert set(vlpress.compare(base, [small, large], **options)["candidates"]) == {"small", "large"}


def test_numbers_follow_from_the_answers(bench: Workbench) -> None:
    base = bench.run("base", lossy("3000242", "5"))
    cand = bench.run("cand", lossy("1000241", "2000241", "3", "4"))
    report, _ = build(base, cand)
    mmbench = report["benchmarks"]["builtin-mmbench"]
    assert (mmbench["n"], mmbench["n_rows"]) == (8, 32)
    assert (mmbench["base"], mmbench["candidate"], mmbench["delta"]) == (87.5, 87.5, 0.0)
    assert mmbench["flips"] == {"right_to_wrong": 1, "wrong_to_right": 1, "wrong_to_wrong": 0}
    assert mmbench["parse_failures"] == {"base": 1, "candidate": 2}
    assert mmbench["mcnemar_p"] == 1.0
    assert mmbench["identical_answers"] == pytest.approx(100 * 29 / 32)
    ocr = report["benchmarks"]["builtin-ocrbench"]
    assert (ocr["flips"]["right_to_wrong"], ocr["flips"]["wrong_to_right"]) == (2, 1)
    assert ocr["delta"] == pytest.approx(-100 / 9)
    low, high = ocr["ci95"]
    assert low < ocr["lower95"] < ocr["delta"] < ocr["upper95"] < high
    assert sum(c["n"] for c in ocr["categories"].values()) == 9
    assert ocr["categories"]["Doc-oriented VQA"]["right_to_wrong"] == 1


def test_candidate_that_changes_nothing_passes_a_wide_margin(bench: Workbench) -> None:
    base, cand = (bench.run(name, names=NAMES[:2]) for name in ("base", "cand"))
    report, _ = build(base, cand, margin=60)
    assert (report["verdict"], report["verdict_reasons"]) == ("PASS", [])
    # A handful of questions cannot show that the loss is below two points.
    report, _ = build(base, cand)
    assert report["verdict"] == "INCONCLUSIVE"
    assert [reason.partition(":")[0] for reason in report["verdict_reasons"]] == list(NAMES[:2])


def test_broken_candidate_fails(bench: Workbench) -> None:
    base, cand = bench.run("base"), bench.run("cand", lambda item: "")
    report, _ = build(base, cand)
    assert report["verdict"] == "FAIL"
    health = report["benchmarks"]["builtin-mmbench"]["health"]["candidate"]
    assert (health["empty"], health["parse_failures"], health["mean_tokens"]) == (32, 32, 0)
    assert report["benchmarks"]["builtin-mmmu"]["extra"]["candidate"]["open"] == 0.0


def test_margin_must_not_be_negative(bench: Workbench) -> None:
    base = bench.run("base")
    with pytest.raises(ValueError, match="margin is -1"):
        compare(base, base, bench.folder / "r", margin=-1)
    assert not (bench.folder / "r").exists()


def test_markdown_starts_with_the_verdict_and_escapes_answers(bench: Workbench) -> None:
    base, cand = bench.run("base"), bench.run("cand", lossy("1000241", "3"))
    compare(base, cand, bench.folder / "r")
    text = (bench.folder / "r" / "report.md").read_text("utf-8")
    assert text.startswith("# INCONCLUSIVE: cand against base (synthetic benchmarks)\n")
    assert "95 % bound of its Δ is above -2, FAIL if the upper one is below" in text
    assert "Only a sample of the questions" not in text
    assert "**Synthetic**" in text
    assert "| builtin-mmbench (synthetic) | circular accuracy | 8 |" in " ".join(text.split())
    assert "no idea \\| \\<b\\>" in text
    assert "1 right to wrong, 0 wrong to right" in text


def test_a_limit_is_noted_at_the_top(bench: Workbench) -> None:
    base = bench.run("base", names=NAMES[:2], open={"limit": 5})
    head = render_report(*build(base, base)).partition("\n## ")[0]
    assert "at most: builtin-mmbench 5, builtin-ocrbench 5." in head


def test_a_benchmark_with_all_its_questions_is_no_sample(bench: Workbench) -> None:
    """There are 8 questions of one benchmark and 9 of the other."""
    base = bench.run("base", names=NAMES[:2], open={"limit": 8})
    report = build(base, base)[0]
    limited = {name: entry["limited"] for name, entry in report["benchmarks"].items()}
    assert limited == {"builtin-mmbench": False, "builtin-ocrbench": True}
    assert "at most: builtin-ocrbench 8." in render_report(*build(base, base))
    assert report["command"].count("--limit 8 ") == 2

    every = bench.run("every", names=NAMES[:2], open={"limit": 9})
    report = build(every, every)[0]
    assert not any(entry["limited"] for entry in report["benchmarks"].values())
    assert "--limit" not in report["command"]
    assert not any("sample" in caveat for caveat in caveats(report))


def test_simulated_activations_are_noted() -> None:
    kernels = {"reference": 2, "simulated fp8 activations": 28}
    text = simulation_caveat({"kernels": kernels})
    assert text is not None and "were simulated (fp8 activations)" in text
    assert simulation_caveat({"kernels": {"reference": 2}}) is None
    assert simulation_caveat(None) is None


def test_breakdown_names_each_part_once(bench: Workbench) -> None:
    base = bench.run("base")
    text = render_report(*build(base, base))
    assert text.count("| Doc-oriented VQA ") == 1
    assert "all Doc-oriented VQA" not in text
    assert "| all Text Recognition " in text


def test_every_flip_is_listed(bench: Workbench) -> None:
    base, cand = bench.run("base", lossy("5")), bench.run("cand", lossy("1000241", "2000241", "3"))
    compare(base, cand, bench.folder / "r")
    lines = (bench.folder / "r" / "flips.jsonl").read_text("utf-8").splitlines()
    flips = [json.loads(line) for line in lines]
    assert [(f["benchmark"], f["unit"], f["change"]) for f in flips] == [
        ("builtin-mmbench", "241", "right_to_wrong"),
        ("builtin-ocrbench", "3", "right_to_wrong"),
        ("builtin-ocrbench", "5", "wrong_to_right"),
        ("builtin-mmmu", "3", "right_to_wrong"),
    ]
    assert flips[0]["rows_that_differ"] == ["1000241", "2000241"]
    assert flips[0]["gold"].endswith(". cat")
    assert flips[1]["gold"] == "word3 / w3"


def test_flip_shows_the_row_that_decided(bench: Workbench) -> None:
    base = bench.run("base")
    cand = bench.run(
        "cand",
        lambda item: {"241": "A.", "1000241": "no idea", "4": "WORD4 no more"}.get(
            item.id, right(item)
        ),
    )
    _, [flip] = build(base, cand)
    assert flip["rows_that_differ"] == ["241", "1000241"]
    assert (flip["row"], flip["candidate"]) == ("1000241", "no idea")


def test_wrong_answers_that_change_are_counted(bench: Workbench) -> None:
    base = bench.run("base", lambda item: "one")
    cand = bench.run("cand", lambda item: "two" if item.id == "4" else "one")
    report, _ = build(base, cand)
    assert report["benchmarks"]["builtin-ocrbench"]["flips"]["wrong_to_wrong"] == 1
    assert report["benchmarks"]["builtin-mmbench"]["flips"]["wrong_to_wrong"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 2}, r"batch_size: \d+ -> 2"),
        ({"open": {"blank": True}}, r"builtin-mmbench.blank_images: False -> True"),
        ({"open": {"profile": "2024"}}, "builtin-mmbench.profile: "),
        ({"open": {"pixels": "vlmevalkit"}}, "builtin-mmbench.pixels"),
        ({"open": {"prompt_style": "qwen2-vl"}}, "builtin-mmbench.prompt_style: "),
        ({"names": NAMES[:2]}, "builtin-mmmu"),
        ({"fingerprint_extra": {"kernel": "x"}}, "kernel: absent -> x"),
    ],
)
def test_different_setups_are_refused(
    bench: Workbench, options: dict[str, Any], message: str
) -> None:
    base, cand = bench.run("base"), bench.run("cand", **options)
    with pytest.raises(ValueError, match=message):
        compare(base, cand, bench.folder / "r")


def test_another_quantization_is_not_another_setup(bench: Workbench) -> None:
    base = bench.run("base")
    bench.source = write_checkpoint_folder(bench.folder / "other", small_model(1))
    cand = bench.run("cand", fingerprint_extra={"quantization": "abc"})
    report, _ = build(base, cand)
    assert report["fingerprint"]["candidate"]["quantization"] == "abc"
    assert report["fingerprint"]["base"]["model"] != report["fingerprint"]["candidate"]["model"]


def test_unfinished_run_is_refused(bench: Workbench) -> None:
    base, cand = bench.run("base"), bench.run("cand")
    path = cand / "builtin-ocrbench" / "predictions.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    with pytest.raises(ValueError, match="builtin-ocrbench: 2 of 9 items"):
        compare(base, cand, bench.folder / "r")


def test_changed_questions_are_refused(bench: Workbench) -> None:
    base, cand = bench.run("base"), bench.run("cand")
    path = cand / "builtin-ocrbench" / "items.jsonl"
    path.write_text(path.read_text("utf-8").replace("word3", "word9"), "utf-8")
    with pytest.raises(ValueError, match=r"items\.jsonl"):
        compare(base, cand, bench.folder / "r")
    reseal(cand)
    with pytest.raises(ValueError, match="builtin-ocrbench"):
        compare(base, cand, bench.folder / "r")


def test_fidelity_and_several_candidates(bench: Workbench) -> None:
    base = bench.run("base", names=NAMES[1:], is_reference=True)
    options: dict[str, Any] = {"names": NAMES[1:], "reference": base}
    same = bench.run("same", **options)
    other = bench.run("other", lossy("1"), seed=1, **options)
    result = compare_many(base, [same, other], bench.folder / "r")
    report = json.loads((bench.folder / "r" / "other" / "report.json").read_text("utf-8"))
    fidelity = report["fidelity"]
    assert set(fidelity) >= FIDELITY
    assert set(fidelity["per_benchmark"]) == set(NAMES[1:])
    tokens = [entry["tokens"] for entry in fidelity["per_benchmark"].values()]
    assert fidelity["tokens"] == sum(tokens)
    low, high = fidelity["kl_unit_mean_ci95"]
    assert low < fidelity["kl_unit_mean"] < high
    assert result["candidates"]["same"]["fidelity"]["kl_max"] < 1e-5
    [pair] = result["pairs"]
    entry = pair["benchmarks"]["builtin-ocrbench"]
    assert (pair["first"], pair["second"]) == ("same", "other")
    assert entry["delta"] == pytest.approx(-100 / 9)
    assert 0 < entry["kl_delta_ci95"][0] < entry["kl_delta"] < entry["kl_delta_ci95"][1]
    text = (bench.folder / "r" / "comparison.md").read_text("utf-8")
    assert text.startswith("# Candidates against base")
    assert json.loads((bench.folder / "r" / "comparison.json").read_text("utf-8")) == result


def test_fidelity_against_another_base_is_refused(bench: Workbench) -> None:
    base = bench.run("base", names=NAMES[2:], is_reference=True)
    cand = bench.run("cand", names=NAMES[2:], reference=base)
    bench.source = write_checkpoint_folder(bench.folder / "other", small_model(1))
    stranger = bench.run("stranger", names=NAMES[2:])
    with pytest.raises(ValueError, match="another model"):
        compare(stranger, cand, bench.folder / "r")


def test_candidates_are_named_by_the_parts_of_their_paths_that_differ(bench: Workbench) -> None:
    base = bench.run("base", names=NAMES[2:])
    runs = [bench.run(f"{name}/eval/candidate", names=NAMES[2:]) for name in ("w8", "w4")]
    result = compare_many(base, runs, bench.folder / "r")
    assert list(result["candidates"]) == ["w8-eval-candidate", "w4-eval-candidate"]
    assert (bench.folder / "r" / "w4-eval-candidate" / "report.json").is_file()
    with pytest.raises(ValueError, match=str(base)):
        compare_many(base, [base, base], bench.folder / "r")


def test_p_values_are_adjusted_and_detectable_differences_reported(bench: Workbench) -> None:
    base, cand = bench.run("base"), bench.run("cand", lossy("1000241", "3", "4", "5"))
    report, flips = build(base, cand)
    plain = {name: entry["mcnemar_p"] for name, entry in report["benchmarks"].items()}
    adjusted = {name: entry["mcnemar_p_holm"] for name, entry in report["benchmarks"].items()}
    smallest = min(plain, key=lambda name: plain[name])
    assert adjusted[smallest] == pytest.approx(min(1.0, 3 * plain[smallest]))
    ocr = report["benchmarks"]["builtin-ocrbench"]
    # Three of nine differ: 2.80 standard errors of sqrt(1/3 / 9).
    assert ocr["detectable"] == pytest.approx(100 * 2.8016 * (1 / 27) ** 0.5, abs=0.01)
    part = ocr["categories"]["Doc-oriented VQA"]
    assert part["few"]
    assert part["p_adjusted"] >= 0.5
    text = render_report(report, flips)
    assert "Holm p" in text
    assert f"{ocr['detectable']:.2f}" in text


def test_two_languages_are_pooled_by_question(bench: Workbench, tmp_path: Path) -> None:
    english, chinese = mmbench_rows(8), mmbench_rows(8)
    for row in chinese:
        row["question"] = f"问：{row['question']}"
    files = {
        name: write_tsv(tmp_path / f"{name}.tsv", rows)
        for name, rows in (("MMBench_DEV_EN", english), ("MMBench_DEV_CN", chinese))
    }
    names = tuple(f"{name}={path}" for name, path in files.items())
    base = bench.run("base", names=names)
    report, flips = build(base, bench.run("cand", lossy("241"), names=names))
    [(name, whole)] = report["pooled"].items()
    assert name == "MMBench_DEV EN+CN"
    assert (whole["n"], whole["clusters"]) == (16, 8)
    assert whole["delta"] == pytest.approx(-100 * 2 / 16)  # the same row is lost in both
    assert whole["design_effect"] == pytest.approx(2, rel=0.2)
    alone = report["benchmarks"]["MMBench_DEV_EN"]
    assert (alone["design_effect"], alone["ci_kind"]) == (1.0, "tango")
    assert whole["ci_kind"] == "tango, scaled by the design effect"
    assert "MMBench\\_DEV EN+CN" in render_report(report, flips)
