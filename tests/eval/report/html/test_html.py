"""The HTML report: its sections and numbers, and that text of models never becomes markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from eval_files import base64_png, ocrbench_rows, write_tsv
from eval_models import Say, right
from workbench import NAMES, Workbench, lossy, reseal

from vlpress.eval import compare, compare_many
from vlpress.eval.report.html import gallery
from vlpress.eval.report.tables import formatting
from vlpress.eval.report.tables.formatting import Medium
from vlpress.eval.report.tables.scores import benchmark_table

pytestmark = pytest.mark.usefixtures("packaged")

ATTACK = "</p><script>alert(1)</script><img src=x onerror=alert(2)>"
SECTIONS = ("scores", "changed", "categories", "fidelity", "layers", "cost", "health", "setup")


class Page(HTMLParser):
    """A page parsed without running its script."""

    VOID = ("meta", "img", "br")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.feed(source)
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(self.open), data))

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        required = {key.replace("_", "-"): value for key, value in attributes.items()}.items()
        return [a for t, a in self.tags if t == tag and all(a.get(k) == v for k, v in required)]

    @property
    def text(self) -> str:
        visible = [t for open, t in self.texts if not {"script", "style", "svg"} & set(open)]
        return " ".join(" ".join(visible).split())

    def section(self, name: str) -> Page:
        match = re.search(rf'<section id="{name}">.*?</section>', self.source, re.DOTALL)
        assert match, f"no section {name}"
        return Page(match.group())


def page(bench: Workbench, base: Path, cand: Path, **options: Any) -> Page:
    compare(base, cand, bench.folder / "r", **options)
    return Page((bench.folder / "r" / "report.html").read_text("utf-8"))


def saying(text: str, *items: str) -> Say:
    return lambda item: text if item.id in items else right(item)


def ocrbench(bench: Workbench, *wrong: str) -> tuple[Path, Path]:
    """A base, and a candidate that answers some questions of one benchmark wrong."""
    names = NAMES[1:2]
    return bench.run("base", names=names), bench.run("cand", lossy(*wrong or "3"), names=names)


def test_verdict_comes_first_in_words(bench: Workbench) -> None:
    base = bench.run("base")
    shown = page(bench, base, bench.run("cand", lambda item: ""))
    title = "The candidate loses too much on drawings."
    assert shown.text.index(title) < shown.text.index("Scores")
    assert "lose more than the 2 points allowed on builtin-mmbench, builtin-oc" in shown.text
    few = bench.run("few", names=NAMES[:2])
    passed = page(bench, few, few, margin=60).text
    assert "The loss stays within the margin on drawings." in passed
    undecided = page(bench, base, base)
    assert "Not decided yet: too few questions." in undecided.text
    assert "about 125 more on builtin-mmbench and 124 more on builtin-ocrbench" in undecided.text
    assert shown.all("title") and "FAIL on drawings: cand against base (synthetic)" in shown.text


def test_undecided_limited_run_says_so(bench: Workbench) -> None:
    base = bench.run("base", names=NAMES[:2], open={"limit": 5})
    text = page(bench, base, base).text
    assert "repeat without --limit, or with --limit 133 or more" in text
    assert (
        "Only a sample of the questions was asked, at most: builtin-mmbench 5, builtin-oc" in text
    )


def test_every_section_has_text_even_without_data(bench: Workbench) -> None:
    base = bench.run("base")
    shown = page(bench, base, base)
    links = {a["href"] for a in shown.all("a")}
    assert links == {f"#{name}" for name in SECTIONS}
    for name in SECTIONS:
        section = shown.section(name)
        assert len(section.text.split()) > 12, name
    assert "Not measured: the candidate was evaluated without a" in shown.section("fidelity").text
    assert "Unknown: the evaluation has no record of layers" in shown.section("layers").text
    assert "No answer flipped between right and wrong" in shown.section("changed").text
    assert not shown.section("fidelity").all("svg") and not shown.section("layers").all("svg")


def test_scores_have_a_row_per_benchmark_with_the_reports_numbers(bench: Workbench) -> None:
    base, cand = bench.run("base"), bench.run("cand", lossy("3", "4"))
    shown = page(bench, base, cand).section("scores")
    report = json.loads((bench.folder / "r" / "report.json").read_text("utf-8"))
    entry = report["benchmarks"]["builtin-ocrbench"]
    cells = [text.strip() for open, text in shown.texts if open[-1:] in (("td",), ("th",))]
    row = cells[cells.index("builtin-ocrbench") :][:10]
    low, high = entry["ci95"]
    assert "9" in row and formatting.number(entry["base"], 2) in row
    assert "−22.22" in row and f"{formatting.interval([low, high], 2)}" in row
    assert "2 / 0" in row and formatting.number(entry["chance"], 1) in row
    folded = cells[cells.index("builtin-ocrbench", cells.index("builtin-ocrbench") + 1) :][:5]
    assert formatting.p_value(entry["mcnemar_p"]) in folded
    assert cells.count("synthetic") == 0 and shown.text.count("synthetic") == 2 * 3


def test_columns_of_the_scores(bench: Workbench) -> None:
    base = bench.run("base")
    page(bench, base, base)
    report: dict[str, Any] = json.loads((bench.folder / "r" / "report.json").read_text("utf-8"))
    heads = [column.head for column in benchmark_table(report).grid(Medium.HTML).columns]
    assert {"Holm p", "detectable"} < set(heads)


def test_answers_of_models_are_text(bench: Workbench) -> None:
    base = bench.run("base", names=NAMES[:2])
    attack = saying(ATTACK + "\x00\ud800", "1000241", "4")
    cand = bench.run("cand", attack, names=NAMES[:2])
    shown = page(bench, base, cand)
    assert len(shown.all("script")) == 1 and "<script>alert" not in shown.source
    assert all(
        a["src"] and a["src"].startswith("data:image/webp;base64,") for a in shown.all("img")
    )
    assert not [a for _, a in shown.tags if any(key.startswith("on") for key in a)]
    assert shown.text.count(ATTACK) == 2
    assert "\x00" not in shown.source and "alert(2)>␀�" in shown.text


def test_names_of_models_and_categories_are_text(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = bench.run("base")
    for path in base.glob("*/items.jsonl"):
        path.write_text(path.read_text("utf-8").replace("animals_0", "<b>$x&"), "utf-8")
    info = json.loads((base / "run.json").read_text("utf-8"))
    info["model"]["name"] = ATTACK
    (base / "run.json").write_text(json.dumps(info), "utf-8")
    reseal(base)
    shown = page(bench, base, base)
    assert len(shown.all("script")) == 1 and "<b>$x&" in shown.section("categories").text
    assert "<b>$x&" not in shown.source and shown.text.count(ATTACK) >= 4


def test_page_loads_nothing_and_runs_only_its_own_script(bench: Workbench) -> None:
    base, cand = ocrbench(bench)
    shown = page(bench, base, cand)
    (policy,) = [a["content"] for a in shown.all("meta") if "http-equiv" in a]
    assert policy and "default-src 'none'" in policy and "script-src 'sha256-" in policy
    for tag, attributes in shown.tags:
        for key in ("src", "href", "xlink:href", "action", "srcset", "data"):
            value = attributes.get(key) or ""
            assert value.startswith(("#", "data:image/webp")) or not value, (tag, key, value)
    addresses = set(re.findall(r"\w+://[^\s\"'<]*", shown.source))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in shown.source and "url(http" not in shown.source


def test_gallery_has_a_card_with_image_and_answers_per_change(bench: Workbench) -> None:
    base = bench.run("base", lossy("5"))
    cand = bench.run("cand", lossy("1000241", "2000241", "3", "1"))
    shown = page(bench, base, cand).section("changed")
    cards = shown.all("article")
    assert [(c["data-benchmark"], c["data-change"]) for c in cards] == [
        ("0", "right_to_wrong"),
        ("1", "right_to_wrong"),
        ("1", "right_to_wrong"),
        ("1", "wrong_to_right"),
        ("2", "right_to_wrong"),
        ("2", "right_to_wrong"),
    ]
    sizes = [(a["width"], a["height"]) for a in shown.all("img")]
    assert sizes == [("56", "56")] * 7  # one question shows two images
    assert all(a["alt"] for a in shown.all("img"))
    assert "Image 2 of 2 of question 1" in {a["alt"] for a in shown.all("img")}
    assert (
        "Which animal is number 0? A dog B bird C fish D cat gold D. cat "
        "base ✓ right: D candidate ✗ wrong: no idea | <b>"
    ) in shown.text


def test_filters_offer_what_occurs(bench: Workbench) -> None:
    base = bench.run("base", lossy("5"))
    cand = bench.run("cand", lossy("1000241", "3", "4"))
    shown = page(bench, base, cand).section("changed")
    cards = shown.all("article")
    buttons = shown.all("button")
    assert all(b["type"] == "button" and b["aria-pressed"] in ("true", "false") for b in buttons)
    changes = {b["data-change"] for b in buttons if "data-change" in b}
    assert changes == {"", *(c["data-change"] for c in cards)}
    benches = {b["data-benchmark"] for b in buttons if "data-benchmark" in b}
    assert benches == {"", *(c["data-benchmark"] for c in cards)}
    options = {o["value"] for o in shown.all("option")}
    assert options == {"", *(c["data-category"] for c in cards)}
    (bar,) = [a for t, a in shown.tags if t == "div" and "data-filters" in a]
    assert "hidden" in bar, "useless without the script that shows it"
    assert not any("hidden" in card for card in cards)


def test_gallery_is_capped_and_says_so(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "CARDS_SHOWN", 3)
    base = bench.run("base", lossy("0"))
    cand = bench.run("cand", saying("no", *map(str, range(1, 9))))
    shown = page(bench, base, cand).section("changed")
    cards = [card["data-change"] for card in shown.all("article", data_benchmark="1")]
    assert cards == ["right_to_wrong"] * 3  # losses before gains
    assert "6 more are listed in flips.jsonl." in shown.text


def test_long_answers_are_cut_with_their_length() -> None:
    assert gallery.visible("x" * 2000) == "x" * 2000
    assert gallery.visible("x" * 2001) == "x" * 2000 + "… (2,001 characters)"
    assert gallery.visible("a\tb\nc\r\x07\x7f\x9b\ud800é") == "a\tb\nc␍␇\ufffd\ufffd\ufffdé"


def test_lost_images_are_counted(bench: Workbench) -> None:
    base, cand = ocrbench(bench, "3", "4")
    first = page(bench, base, cand).all("img")[0]
    for run in (base, cand):
        for path in (run / "builtin-ocrbench" / "pictures").iterdir():
            path.write_bytes(b"damaged")
    shown = page(bench, base, cand)
    assert "2 images are missing or damaged." in shown.text
    assert first not in shown.all("img")


def test_images_of_the_base_replace_missing_ones(bench: Workbench) -> None:
    base, cand = ocrbench(bench)
    for path in (cand / "builtin-ocrbench" / "pictures").iterdir():
        path.unlink()
    assert "missing" not in page(bench, base, cand).section("changed").text


def test_runs_without_images_say_so(bench: Workbench) -> None:
    base, cand = ocrbench(bench)
    for path in [*base.glob("*/items.jsonl"), *cand.glob("*/items.jsonl")]:
        lines = map(json.loads, path.read_text("utf-8").splitlines())
        bare = [{k: v for k, v in line.items() if k != "pictures"} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in bare), "utf-8")
    shown = page(bench, reseal(base), reseal(cand)).section("changed")
    assert "These evaluations stored no images" in shown.text
    assert not shown.all("img") and "missing" not in shown.text


def test_fidelity_and_layers_are_drawn_where_known(bench: Workbench) -> None:
    base = bench.run("base", names=NAMES[2:], is_reference=True)
    errors = {"error": 0.01, "rtn_error": 0.02, "final_error": 0.01, "bits": 4, "group_size": -1}
    layers = [
        {"name": f"{stage}.{block}.mlp.up_proj", "method": "gptq", **errors}
        for stage in ("model.layers", "visual.blocks")
        for block in range(2)
    ]
    tokens = {"model.layers.0.<mlp>": [300, 12], "model.layers.1.<mlp>": [64, 248]}
    experts = {"floor": 64, "tokens": tokens}
    record = {"recipe": {"name": "<w4>"}, "experts": experts, "layers": layers}
    (bench.source / "vlpress.json").write_text(json.dumps(record))
    cand = bench.run("cand", names=NAMES[2:], seed=1, reference=base)
    shown = page(bench, base, cand)
    fidelity, drawn = shown.section("fidelity"), shown.section("layers")
    report = json.loads((bench.folder / "r" / "report.json").read_text("utf-8"))
    assert formatting.nats(report["fidelity"]["kl_mean"]) in fidelity.text
    assert f"{report['fidelity']['tokens']} answer tokens of all benchmarks" in fidelity.text
    # So few tokens share a single position, which is not drawn.
    labels = [a["aria-label"] for a in fidelity.all("svg")]
    assert labels == ["Histogram of the KL divergence of answer tokens"]
    assert len(drawn.all("svg")) == 3 and "error of rounding" in drawn.text
    assert "Fewer than 64 reach 1 of 4 experts" in drawn.text
    assert "model.layers.0.<mlp>: 1 (12)" in drawn.text
    assert "model.layers.1.<mlp>:" not in drawn.text
    assert "Recipe <w4>" in shown.text
    for layer in layers:
        del layer["final_error"], layer["rtn_error"]
    (cand / "quantization.json").write_text(json.dumps({"layers": layers}))
    text = page(bench, base, cand).section("layers").text
    assert "4 layers were quantized without activations" in text


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"layers": 3}',
        '{"layers": [{"name": 3}]}',
        '{"layers": [4]}',
        '{"layers": [{"name": "a", "final_error": "b"}]}',
        '{"layers": [], "experts": [1]}',
        '{"layers": [], "experts": {"floor": 64, "tokens": {}}}',
        '{"layers": [], "experts": {"floor": 64, "tokens": {"a": []}}}',
        '{"layers": [], "experts": {"floor": 64, "tokens": {"a": [-1]}}}',
    ],
)
def test_a_damaged_record_of_layers_is_named(bench: Workbench, content: str) -> None:
    base = bench.run("base", names=NAMES[2:])
    (base / "quantization.json").write_text(content)
    with pytest.raises(ValueError, match=r"quantization\.json"):
        compare(base, base, bench.folder / "r")
    assert not (bench.folder / "r").exists()


def test_setup_gives_the_command(bench: Workbench) -> None:
    base = bench.run("base", names=NAMES[:1], open={"limit": 5})
    text = (
        page(bench, base, base, about={"command": "vlpress run 'a b' -o x"}).section("setup").text
    )
    assert "vlpress run 'a b' -o x" in text
    assert (
        "vlpress eval base -o base --bench builtin-mmbench --limit 5"
        in page(bench, base, base).section("setup").text
    )


def test_several_candidates_get_a_page_with_links_and_the_front(bench: Workbench) -> None:
    base = bench.run("base", names=NAMES[1:2], is_reference=True)
    options: dict[str, Any] = {"names": NAMES[1:2], "reference": base}
    good = bench.run("good #1", **options)
    bad = bench.run("bad", lossy("3", "4"), seed=1, **options)
    compare_many(base, [good, bad], bench.folder / "r")
    shown = Page((bench.folder / "r" / "comparison.html").read_text("utf-8"))
    assert "None of 2 candidates is shown to stay within the margin on drawings." in shown.text
    links = [a["href"] for a in shown.all("a")]
    assert links == ["good%20%231/report.html", "bad/report.html"]
    assert [len(s.all("svg")) for s in (shown.section("choice"), shown.section("pairs"))] == [2, 0]
    assert "builtin-ocrbench (synthetic)" in shown.text
    comparison = json.loads((bench.folder / "r" / "comparison.json").read_text("utf-8"))
    assert comparison["pareto"] == {"mean_score": ["good #1"], "kl_mean": ["good #1"]}
    means = comparison["candidates"]["bad"]["mean_score"]
    assert means["candidate"] < means["base"] == 100
    single = Page((bench.folder / "r" / "bad" / "report.html").read_text("utf-8"))
    assert "../comparison.html" in {a["href"] for a in single.all("a")}


def test_without_divergences_only_the_score_is_drawn(bench: Workbench) -> None:
    base = bench.run("base", names=NAMES[2:])
    result = compare_many(base, [base, bench.run("c", names=NAMES[2:])], bench.folder / "r")
    assert result["pareto"] == {"mean_score": ["base", "c"], "kl_mean": None}
    shown = Page((bench.folder / "r" / "comparison.html").read_text("utf-8"))
    assert len(shown.section("choice").all("svg")) == 1
    assert "mean KL" not in shown.section("candidates").text


def test_same_runs_give_the_same_page(bench: Workbench) -> None:
    base, cand = ocrbench(bench)
    assert page(bench, base, cand).source == page(bench, base, cand).source


def test_answers_are_shown_even_if_none_flipped(bench: Workbench) -> None:
    base = bench.run("base", lossy("5"), names=NAMES[:2])
    shown = page(bench, base, base).section("changed")
    cards = shown.all("article")
    assert len(cards) == 2 * gallery.SAMPLES_SHOWN and len(shown.all("img")) == len(cards)
    assert {card["data-change"] for card in cards} <= {"both_right", "both_wrong"}
    assert "both right" in shown.text and "gold word0" in shown.text
    assert not shown.all("button"), "nothing to filter"
    cand = bench.run("cand", lossy("3", "5"), names=NAMES[:2])
    assert "both right" not in page(bench, base, cand).section("changed").text


def test_details_unfold_when_they_say_something(bench: Workbench, tmp_path: Path) -> None:
    rows = ocrbench_rows(60)
    names = [f"OCRBench={write_tsv(tmp_path / 'OCRBench.tsv', rows)}"]
    base = bench.run("base", names=names)
    wrong = [str(row["index"]) for row in rows if row["category"] == "Doc-oriented VQA"]
    for cand, is_open in ((base, False), (bench.run("cand", lossy(*wrong), names=names), True)):
        shown = page(bench, base, cand)
        folded = [box for box in shown.section("scores").all("details") if "data-paper" in box]
        assert [("open" in box) for box in folded] == [is_open]
        found = shown.section("categories").text
        change = "Changed by more than chance explains: Doc-oriented VQA (−100.0 points)"
        assert (change in found) == is_open


def test_questions_without_categories_have_no_rows_for_none(
    bench: Workbench, tmp_path: Path
) -> None:
    path = tmp_path / "mine.jsonl"
    row = {"image": base64_png(), "question": "what is written in the image?"}
    path.write_text("".join(json.dumps({**row, "answer": f"word{i}"}) + "\n" for i in range(8)))
    base = bench.run("base", names=[f"mine={path}"])
    shown = page(bench, base, base).section("categories")
    assert "The questions have no categories." in shown.text
    assert "none" not in shown.text and not shown.all("svg") and not shown.all("table")


def test_facts_leave_out_a_change_of_zero(bench: Workbench) -> None:
    base, cand = ocrbench(bench)
    assert "Largest loss −11.1 points" in page(bench, base, cand).text
    text = page(bench, base, base).text
    assert "Smallest gain" not in text and "Largest loss" not in text


def test_date_machine_and_decoding_are_shown(bench: Workbench) -> None:
    settings = {"repetition_penalty": 1.05, "temperature": 1e-06, "do_sample": True}
    (bench.source / "generation_config.json").write_text(
        json.dumps({**settings, "eos_token_id": 258})
    )
    base, cand = ocrbench(bench)
    shown = page(bench, base, cand)
    report = json.loads((bench.folder / "r" / "report.json").read_text("utf-8"))
    when = report["evaluated"]["candidate"]
    assert f"Evaluated {when['ended'][:10]} on {when['processor']}" in shown.text
    assert report["generation"]["checkpoint"]["base"] == settings
    assert report["generation"]["differences"] == ["repetition_penalty 1.05"]
    assert "generation_config.json sets repetition_penalty 1.05" in shown.text
    setup = shown.section("setup").text
    assert "temperature 0.0, repetition_penalty 1.0" in setup and "repetition_penalty 1.05" in setup
    assert "repetition_penalty 1.05" in (bench.folder / "r" / "report.md").read_text().replace(
        "\\", ""
    )
