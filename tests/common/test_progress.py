import io
import logging
import subprocess
import sys

import pytest
from rich.console import Console

from vlpress.common.progress import (
    Reporter,
    WarningHandler,
    format_bytes,
    format_seconds,
    peak_memory,
    reporting,
    silent,
)
from vlpress.common.schedule import Expected, Schedule


def reporter(terminal: bool = False) -> tuple[Reporter, io.StringIO]:
    stream = io.StringIO()
    return Reporter(Console(file=stream, force_terminal=terminal, width=120)), stream


def test_plain_lines_without_a_terminal() -> None:
    shown, stream = reporter()
    with shown.stage("quantize") as update:
        for done in range(1, 101):
            update(done, 100, f"layers.{done}")
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("quantize: 1/100, peak ") and lines[0].endswith("layers.1")
    assert lines[-1].startswith("quantize: 100/100 done in 0:0")
    assert len(lines) == 2


def test_the_time_left_follows_from_the_steps_of_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 10.0, 50.0, 60.0])
    monkeypatch.setattr("vlpress.common.schedule.time.monotonic", lambda: next(clock))
    shown, stream = reporter()
    with shown.stage("evaluate") as update:
        update(50, 100, "")  # resumed: 50 were answered earlier
        update(60, 100, "")  # 10 in 40 s, so 40 more take 160 s
    assert "evaluate: 60/100, 2:40 left" in stream.getvalue()


def test_the_time_until_the_end_includes_later_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 60.0, 60.0])
    shown, stream = reporter()
    shown.schedule = Schedule([Expected("a", 120, "x"), Expected("b", 600, "y")])
    monkeypatch.setattr("vlpress.common.schedule.time.monotonic", lambda: next(clock))
    with shown.stage("a") as update:
        update(0, 100, "")
        update(50, 100, "")
    assert "a: 50/100, 1:00 left, 11:00 until the end" in stream.getvalue()


def test_a_step_is_one_line_or_a_spinner() -> None:
    shown, stream = reporter()
    with shown.step("reading tiny"):
        pass
    assert stream.getvalue() == "reading tiny\n"
    terminal, stream = reporter(terminal=True)
    with terminal.step("reading tiny"):
        pass
    assert "reading tiny" in stream.getvalue()
    with silent().step("reading tiny"):
        pass


def test_bars_on_a_terminal_show_title_count_and_detail() -> None:
    shown, stream = reporter(terminal=True)
    with shown.stage("quantize") as update:
        update(3, 3, "layers.2 error 0.01")
    text = stream.getvalue()
    assert "quantize" in text and "3/3" in text and "layers.2 error 0.01" in text


def test_quiet_keeps_warnings() -> None:
    shown, stream = reporter()
    shown.quiet = True
    with shown.stage("quantize") as update:
        update(1, 1, "")
    shown.warn("calibrated on [drawings]")
    assert stream.getvalue() == "WARNING: calibrated on [drawings]\n"


def test_failed_stage_is_not_reported_as_done() -> None:
    shown, stream = reporter()
    with pytest.raises(RuntimeError), shown.stage("quantize") as update:
        update(1, 2, "")
        raise RuntimeError
    assert "done" not in stream.getvalue()


def test_units() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1024, 3 << 30)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "3.0 GiB",
    ]
    assert [format_seconds(s) for s in (7.4, 760, 3723)] == ["0:07", "12:40", "1:02:03"]
    assert 10 << 20 < peak_memory() < 1 << 45


@pytest.mark.skipif(sys.platform != "linux", reason="others count each process by itself")
def test_peak_memory_excludes_that_of_the_parent_process() -> None:
    inner = "from vlpress.common.progress import peak_memory; print(peak_memory())"
    outer = (
        "import subprocess, sys; held = b'x' * (1 << 29); "
        f"subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    )
    command = [sys.executable, "-c", outer]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 10 << 20 < int(done.stdout) < 1 << 29


def test_stages_follow_tasks_and_their_second_pass() -> None:
    shown, stream = reporter()
    with shown.stages("evaluate", again="fidelity") as update:
        for done in (0, 2):
            update("a", done, 2, "")
        update("b", 3, 3, "")
        update("a", 1, 2, "")
        update("a", 2, 2, "")
        update("b", 1, 3, "")
    titles = [line.partition(":")[0] for line in stream.getvalue().splitlines() if "done" in line]
    assert titles == ["evaluate a", "evaluate b", "fidelity a", "fidelity b"]


def test_logged_warnings_are_shown_by_the_reporter() -> None:
    shown, stream = reporter()
    logger = logging.getLogger("vlpress.test_progress")
    logger.addHandler(WarningHandler(shown))
    logger.warning("only %d samples", 3)
    logger.info("not shown")
    assert stream.getvalue() == "WARNING: only 3 samples\n"


@pytest.mark.parametrize(
    ("progress", "rank", "shown", "logged"),
    [(True, 0, True, 0), (False, 0, False, 1), (True, 1, False, 0)],
)
def test_a_verb_reports_on_rank_0_or_logs(
    progress: bool,
    rank: int,
    shown: bool,
    logged: int,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with reporting(progress, rank=rank) as reporter:
        reporter.warn("few samples")
        with reporter.stage("quantize") as update:
            update(1, 1, "")
    shown_text = capfd.readouterr().err
    assert ("WARNING: few samples" in shown_text and "quantize: 1/1" in shown_text) == shown
    assert shown or not shown_text
    assert [record.message for record in caplog.records] == ["few samples"] * logged
    assert not logging.getLogger("vlpress").handlers
