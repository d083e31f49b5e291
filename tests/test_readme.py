"""The Python code of README.md."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import vlpress

README = Path(__file__).parents[1] / "README.md"


def example() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    return str(code)


def test_calls_fit_the_signatures() -> None:
    calls = [node for node in ast.walk(ast.parse(example())) if isinstance(node, ast.Call)]
    names = []
    for call in calls:
        if isinstance(call.func, ast.Attribute):
            names.append(call.func.attr)
            options = {str(word.arg): None for word in call.keywords}
            function = getattr(vlpress, call.func.attr)
            inspect.signature(function).bind(*call.args, **options)
    assert {"quantize", "evaluate", "compare", "load_quantized"} <= set(names)


@pytest.mark.slow
def test_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(example(), "README.md", "exec"), {})
    assert capsys.readouterr().out.split()[0] in ("PASS", "FAIL", "INCONCLUSIVE")
