"""The report's pages in a real browser: filters, images, schemes, widths, and no request.

Needs a Chromium on the machine; nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any

import pytest
from browsers import chromium_path, launch
from eval_files import package_files
from eval_models import Say, right
from workbench import NAMES, Workbench, lossy

from vlpress.eval import compare_many
from vlpress.model.processing.processor import Processor

pytestmark = pytest.mark.browser

WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
TABLETS = [{"width": 1024, "height": 768}, {"width": 768, "height": 1024}]
PAGES = ("comparison.html", "bad/report.html", "good/report.html")
CHANGES = ["right_to_wrong"] * 4 + ["wrong_to_right", "right_to_wrong"]  # in order of benchmarks
ATTACK = (
    "<script>document.title='attacked'</script><img src=x onerror=\"document.title='attacked'\">"
)
LONG = "an answer that does not end and has no spaces: " + "x" * 3000

# Texts or marks with too little contrast to their background (WCAG 2, relative luminance).
FAINT = """(all, [ink, least]) => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = element => {
    let behind = element;
    while (rgb(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
    const pair = [getComputedStyle(element)[ink], getComputedStyle(behind).backgroundColor];
    const [low, high] = pair.map(rgb).map(light).sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const shown = all.filter(e => e.checkVisibility() && (ink === 'stroke' || e.textContent.trim()));
  return [shown.length, shown.filter(e => contrast(e) < least).map(e => e.outerHTML.slice(0, 90))];
}"""
TEXTS = "h1, p, a, td, th, dt, dd, span:not(.unseen), button, summary, figcaption, output"
MARKS = ", ".join(f"svg [style*='stroke: var(--{name}']" for name in ("s", "accent", "muted"))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with launch(chromium_path()) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two candidates, one of them with hostile answers."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        package_files(folder, patch)
        bench = Workbench(Processor.from_folder(checkpoint), folder)
        opened = {"open": {"reasoning": "think-tags"}}
        base = bench.run("base", _reason(lossy("5")), is_reference=True, **opened)
        options: dict[str, Any] = {"reference": base, **opened}
        (bench.source / "vlpress.json").write_text(json.dumps({"layers": layers()}))
        answers = {"1000241": ATTACK, "242": LONG, "3": ATTACK, "4": LONG}
        bad = bench.run("bad", lambda item: answers.get(item.id) or right(item), seed=1, **options)
        good = bench.run("good", **options)
        compare_many(base, [bad, good], folder / "report")
    return folder / "report"


@pytest.fixture(scope="module")
def crowded(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of candidates of the same size with nearly the same scores and divergences."""
    folder = tmp_path_factory.mktemp("crowded")
    with pytest.MonkeyPatch.context() as patch:
        package_files(folder, patch)
        bench = Workbench(Processor.from_folder(checkpoint), folder)
        base = bench.run("base", names=NAMES[1:2], is_reference=True)
        runs = [
            bench.run(
                f"candidate with a long name {i}",
                lossy(*"345"[: i % 4]),
                names=NAMES[1:2],
                seed=i % 2,
                reference=base,
            )
            for i in range(8)
        ]
        compare_many(base, runs, folder / "report")
    return folder / "report"


def _reason(say: Say) -> Say:
    """Put a reasoning before one answer."""
    return lambda item: ("<think>Hm.</think>" if item.id == "242" else "") + say(item)


def layers() -> list[dict[str, Any]]:
    errors = {"error": 0.01, "rtn_error": 0.02, "final_error": 0.01, "bits": 4}
    return [
        {"name": f"model.layers.{i}.mlp.up_proj", "method": "gptq", "group_size": -1, **errors}
        for i in range(3)
    ]


@pytest.fixture
def visit(chromium: Any, pages: Path) -> Iterator[Any]:
    """Opens a page; the test fails if the page logs, throws, or requests another address."""
    contexts: list[Any] = []
    events: list[str] = []

    def visit(name: str = "bad/report.html", **options: Any) -> Any:
        contexts.append(chromium.new_context(**{"viewport": WIDE, **options}))
        page, address = contexts[-1].new_page(), (pages / name).as_uri()
        page.set_default_timeout(20_000)

        def on_request(request: Any) -> None:
            if request.url != address and not request.url.startswith("data:image/webp;"):
                events.append(request.url)

        page.on("console", lambda message: events.append(message.text))
        page.on("pageerror", lambda error: events.append(str(error)))
        page.on("request", on_request)
        page.goto(address)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert events == []


def changes(page: Any) -> list[str]:
    """Kinds of the visible cards."""
    shown = "all => all.filter(e => e.checkVisibility()).map(e => e.dataset.change)"
    return list(page.eval_on_selector_all("[data-flip]", shown))


def test_filters_narrow_the_gallery(visit: Any) -> None:
    page = visit()
    count, none = page.locator("[data-shown]"), page.locator("[data-none]")
    category = page.get_by_label("Category", exact=False).and_(page.locator("select"))

    def press(name: str) -> None:
        button = page.get_by_role("button", name=name)
        button.click()
        assert button.get_attribute("aria-pressed") == "true"

    assert changes(page) == CHANGES and count.inner_text() == "6 of 6 shown"
    press("wrong to right")
    assert changes(page) == ["wrong_to_right"] and count.inner_text() == "1 of 6 shown"
    assert page.get_by_role("button", name="All changes").get_attribute("aria-pressed") == "false"
    assert page.locator("[data-bench]:visible").count() == 1
    press("builtin-mmbench")
    assert changes(page) == [] and none.is_visible()
    press("All changes")
    assert changes(page) == ["right_to_wrong"] * 2 and not none.is_visible()
    category.select_option(label="animals_1")
    assert count.inner_text() == "1 of 6 shown"
    press("builtin-ocrbench")  # which has no such category
    assert category.input_value() == "" and count.inner_text() == "3 of 6 shown"
    press("All benchmarks")
    assert changes(page) == CHANGES


def test_filters_work_from_the_keyboard(visit: Any) -> None:
    page = visit()
    page.get_by_role("button", name="All changes").focus()
    for _ in range(2):
        page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert changes(page) == ["wrong_to_right"]
    outline = "() => getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid", "the focused element is outlined"


def test_every_card_is_visible_without_scripts(visit: Any) -> None:
    page = visit(java_script_enabled=False)
    assert changes(page) == CHANGES
    assert not page.locator("[data-filters]").is_visible()


def test_images_load(visit: Any) -> None:
    page = visit()
    widths = page.eval_on_selector_all("img", "all => all.map(i => i.complete && i.naturalWidth)")
    assert widths == [56] * len(CHANGES)


def test_answers_are_text_and_run_nothing(visit: Any) -> None:
    page = visit()
    answers = page.locator(".answers .wrong bdi").all_inner_texts()
    assert answers.count(ATTACK) == 3
    assert page.title().endswith(": bad against base (synthetic)")
    assert page.locator("script").count() == 1


def test_policy_blocks_foreign_scripts(chromium: Any, pages: Path) -> None:
    page = chromium.new_page()
    page.goto((pages / "good" / "report.html").as_uri())
    page.evaluate(
        "() => { const own = document.createElement('script');"
        "own.textContent = 'document.title = \"ran\"'; document.body.append(own); }"
    )
    loaded = page.evaluate("() => fetch('data:text/plain,x').then(() => true, () => false)")
    assert page.title() != "ran" and loaded is False
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_nothing_overflows_the_viewport(visit: Any, name: str) -> None:
    page = visit(name)
    page.evaluate("() => document.querySelectorAll('details').forEach(d => { d.open = true })")
    for viewport in (WIDE, PHONE):
        page.set_viewport_size(viewport)
        width = page.evaluate("() => document.documentElement.scrollWidth")
        assert width == viewport["width"]
        outside = page.eval_on_selector_all(
            "main *:not(.unseen)",
            "all => all.filter(e => !e.closest('.scroll, pre, svg, .unseen') && "
            "e.getBoundingClientRect().right > innerWidth + 0.5)"
            ".map(e => e.outerHTML.slice(0, 90))",
        )
        assert outside == [], viewport


@pytest.mark.parametrize("name", PAGES)
def test_tables_fit_without_scrolling(visit: Any, name: str) -> None:
    page = visit(name)
    for viewport in (WIDE, *TABLETS, PHONE):
        page.set_viewport_size(viewport)
        if viewport["width"] < 1000:  # folded tables may scroll in a wide window
            page.evaluate(
                "() => document.querySelectorAll('details').forEach(d => { d.open = true })"
            )
        assert scrolling_tables(page) == [], viewport


def scrolling_tables(page: Any) -> list[str]:
    """Names of the visible tables that are wider than their box."""
    tables = page.locator(".scroll:visible")
    sizes = tables.evaluate_all("all => all.map(e => [e.ariaLabel, e.scrollWidth - e.clientWidth])")
    assert len(sizes) >= 2
    return [name for name, excess in sizes if excess > 0]


def test_tables_with_long_names_fit_without_scrolling(crowded: Path, chromium: Any) -> None:
    page = chromium.new_page(viewport=WIDE)
    page.goto((crowded / "comparison.html").as_uri())
    for viewport in (WIDE, *TABLETS, PHONE):
        page.set_viewport_size(viewport)
        assert scrolling_tables(page) == [], viewport
    page.close()


def test_the_change_and_its_interval_are_in_sight(visit: Any) -> None:
    page = visit()
    rows = page.locator("#scores .scroll").first.locator("tbody tr")
    assert rows.count() == 3
    for viewport, head in product((WIDE, PHONE), ("Δ", "95 % interval")):
        page.set_viewport_size(viewport)
        cells = rows.locator(f'td[data-head="{head}"]')
        assert cells.count() == 3
        for box in (cell.bounding_box() for cell in cells.all()):
            assert box and 0 <= box["x"] and box["x"] + box["width"] <= viewport["width"]


def test_labels_of_models_do_not_overlap(crowded: Path, chromium: Any) -> None:
    page = chromium.new_page()
    page.goto((crowded / "comparison.html").as_uri())
    figures = page.locator("#choice svg").all()
    assert figures
    for viewport, figure in product((WIDE, PHONE), figures):
        page.set_viewport_size(viewport)
        boxes = figure.locator("text").evaluate_all(
            "all => all.map(e => [e.textContent, e.getBoundingClientRect().toJSON()])"
        )
        assert sum(text.startswith("candidate") for text, _ in boxes) == 8
        outside = [text for text, box in boxes if box["right"] > viewport["width"] or box["x"] < 0]
        assert outside == []
        for (first, a), (second, b) in combinations(boxes, 2):
            apart = (
                a["right"] <= b["left"] + 0.5
                or b["right"] <= a["left"] + 0.5
                or a["bottom"] <= b["top"] + 2.5  # the boxes of lines of text are taller than ink
                or b["bottom"] <= a["top"] + 2.5
            )
            assert apart, f"{first} is over {second}"
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_texts_and_marks_are_readable_in_both_schemes(visit: Any, name: str) -> None:
    page = visit(name)
    for scheme, color in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(22, 25, 30)")):
        page.emulate_media(color_scheme=scheme)
        ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert ground == color
        for selectors, ink, least in (
            (TEXTS, "color", 4.5),
            ("svg text", "fill", 4.5),
            (MARKS, "stroke", 3),
        ):
            count, faint = page.eval_on_selector_all(selectors, FAINT, [ink, least])
            assert count > 4 and faint == [], scheme


def test_figures_have_names_and_headings_their_order(visit: Any) -> None:
    page = visit()
    names = page.eval_on_selector_all("svg", "all => all.map(e => e.ariaLabel)")
    assert len(names) >= 4 and all(names)
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map(e => +e.tagName[1])")
    assert levels.count(1) == 1
    assert all(deeper <= level + 1 for level, deeper in pairwise(levels))


def test_print_has_everything_but_the_controls(visit: Any) -> None:
    page = visit(color_scheme="dark")
    unfolded = page.locator("details[open]").count()
    page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print", color_scheme="dark")
    ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(255, 255, 255)"
    assert not page.locator("[data-filters]").is_visible() and not page.locator("nav").is_visible()
    folded = page.locator("details:has(table)")
    assert folded.count() >= 4 and all(box.is_visible() for box in folded.all())
    assert all(box.is_visible() for box in folded.locator("table").all())
    styles = "all => all.map(e => getComputedStyle(e).breakInside)"
    assert page.eval_on_selector_all(".card", styles) == ["avoid"] * len(CHANGES)
    assert page.pdf()[:5] == b"%PDF-"
    page.evaluate("() => dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == unfolded


def test_candidates_link_to_their_pages_and_back(visit: Any, pages: Path) -> None:
    page = visit("comparison.html")
    addresses = page.eval_on_selector_all("table a", "all => all.map(a => a.href)")
    assert addresses == [(pages / name / "report.html").as_uri() for name in ("bad", "good")]
    back = visit("bad/report.html").get_by_role("link", name="All candidates")
    assert back.evaluate("a => a.href") == (pages / "comparison.html").as_uri()
