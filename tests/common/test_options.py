"""Options of a verb as fields of a dataclass."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from vlpress.cli.main import app
from vlpress.cli.parameters import command
from vlpress.common.options import (
    Option,
    Options,
    command_words,
    option_fields,
    recorded,
    verb,
)
from vlpress.eval.config import (
    BATCH_SIZE,
    CompareOptions,
    EvaluateOptions,
    RunOptions,
    SplitOptions,
)
from vlpress.eval.pixels.config import PixelsOptions
from vlpress.quant.config import (
    ExportOptions,
    GenerateOptions,
    InspectOptions,
    ModelSettings,
    PlanOptions,
    PushOptions,
    QuantizeOptions,
    RuntimeOptions,
)

VERBS: dict[str, type[Options]] = {
    "run": RunOptions,
    "plan": PlanOptions,
    "quantize": QuantizeOptions,
    "export": ExportOptions,
    "eval": EvaluateOptions,
    "compare": CompareOptions,
    "pixels": PixelsOptions,
    "generate": GenerateOptions,
    "inspect": InspectOptions,
    "push": PushOptions,
    "split": SplitOptions,
}


@dataclass(frozen=True)
class Growth(Options):
    plant: Annotated[str, Option("The plant.", is_argument=True, metavar="PLANT")]


@dataclass(frozen=True, kw_only=True)
class Water(Growth):
    litres: Annotated[float, Option("Litres.", minimum=0.0, maximum=9.0)] = 0.5
    kind: Annotated[Literal["rain", "tap"], Option("Origin.")] = "tap"
    day: Annotated[Sequence[str] | None, Option("A day; repeatable.", flags=("--day", "-d"))] = None
    note: Annotated[Path | str | None, Option("A file.", default_text="no file")] = None
    is_warm: Annotated[bool, Option("Warm.", flags=("--warm",))] = False
    fast: Annotated[bool, Option("Hurry.", is_recorded=False)] = False
    on_drop: Annotated[
        Callable[[], None] | None, Option("Called per drop.", in_command_line=False)
    ] = None


@verb(Water)
def water(options: Water) -> Water:
    """Water a plant.

    Raises:
        ValueError: too much.
    """
    return options


def test_a_function_has_the_options_as_its_arguments() -> None:
    parameters = inspect.signature(water).parameters
    assert list(parameters)[:3] == ["plant", "litres", "kind"]
    assert parameters["plant"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert parameters["litres"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["litres"].annotation is float
    doc = water.__doc__ or ""
    assert doc.startswith("Water a plant.\n\nArgs:\n    plant: The plant.\n    litres: Litres.")
    assert doc.index("on_drop: Called per drop.") < doc.index("Raises:")
    assert water("fern", litres=2) == Water("fern", litres=2)
    with pytest.raises(TypeError, match="litre"):
        water("fern", litre=2)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"litres": -1.0}, "Invalid value for '--litres': -1.0; allowed: 0 to 9"),
        ({"litres": 10}, "Invalid value for '--litres': 10; allowed: 0 to 9"),
        ({"litres": float("nan")}, "'--litres': nan; allowed: 0 to 9"),
        ({"kind": "sea"}, "Invalid value for '--kind': 'sea'; allowed: rain, tap"),
    ],
)
def test_values_are_checked_in_python_and_on_the_command_line(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        water("fern", **values)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("function", "values", "words"),
    [
        ("plan", {"device": "tpu"}, ["plan", "tiny", "--device", "tpu"]),
        ("plan", {"calib_samples": 0}, ["plan", "tiny", "--calib-samples", "0"]),
        ("plan", {"memory": -0.5}, ["plan", "tiny", "--memory", "-0.5"]),
    ],
)
def test_python_and_the_command_line_refuse_in_the_same_words(
    function: str, values: dict[str, Any], words: list[str]
) -> None:
    result = CliRunner().invoke(app, words)
    with pytest.raises(ValueError) as error:
        PlanOptions("tiny", **values)
    assert result.exit_code == 2
    assert result.stderr == f"vlpress: error: {error.value}\n"


def test_names_and_paths_are_converted_and_a_single_value_is_a_sequence() -> None:
    options = Water(Path("fern"), day="monday", note="a.txt")  # type: ignore[arg-type]
    assert (options.plant, options.day, options.note) == ("fern", ("monday",), Path("a.txt"))
    assert Water("fern", day=["monday", "friday"]).day == ("monday", "friday")
    assert replace(options, day=None).day is None


def test_fields_carry_kind_choices_and_default() -> None:
    fields = {field.name: field for field in option_fields(Water)}
    assert (fields["day"].kind, fields["day"].is_repeatable) == (str, True)
    assert fields["kind"].choices == ("rain", "tap")
    assert (fields["note"].kind, fields["note"].flags) == (Path, ("--note",))
    assert fields["plant"].label == "PLANT" and fields["litres"].label == "--litres"


def test_a_command_holds_arguments_and_what_differs_from_the_defaults() -> None:
    options = Water("a fern", litres=0.25, day=("monday", "friday"), is_warm=True, fast=True)
    values = recorded(options, always=("plant", "kind"))
    words = command_words(Water, values)
    assert words[:3] == ["a fern", "--kind", "tap"]
    assert words[3:] == ["--litres", "0.25", "--day", "monday", "--day", "friday", "--warm"]
    assert command_words(Water, {"litres": 1 / 3}) == ["--litres", repr(1 / 3)]


def test_the_command_line_gives_back_the_options_of_a_command() -> None:
    app, received = typer.Typer(), []

    @command(app, Water)
    def pour(values: dict[str, Any], twice: bool = False) -> None:
        """Pour."""
        received.append((Water(**values), twice))

    options = Water("a fern", litres=0.25, kind="rain", day=("monday", "friday"), is_warm=True)
    words = command_words(Water, recorded(options, always=("plant",)))
    result = CliRunner().invoke(app, [*words, "--twice"])
    assert result.exit_code == 0, result.output
    assert received == [(options, True)]
    shown = CliRunner().invoke(app, ["--help"]).output
    assert "--warm" in shown and "no file" in shown and "on_drop" not in shown


def test_a_group_of_options_takes_the_values_of_the_verb() -> None:
    options = RunOptions("tiny", out="out", device="cpu", seed=3)
    settings = options.group(ModelSettings)
    assert settings == ModelSettings(device="cpu", seed=3)
    assert GenerateOptions("tiny", "?", head="w8a16").group(RuntimeOptions).head == "w8a16"


def test_a_run_repeats_itself() -> None:
    options = RunOptions(
        "a model", out="the out", bench=("x=y", "z"), margin=1.5, calib="a.jsonl", noise=0
    )
    assert options.command() == (
        "vlpress run 'a model' -o 'the out' --recipe w4a16 --bench x=y --bench z "
        "--calib a.jsonl --noise 0 --margin 1.5"
    )
    assert RunOptions(out="out/demo").command() == "vlpress run tiny -o out/demo --recipe w4a16"


@pytest.mark.parametrize("name", list(VERBS))
def test_every_option_of_the_api_is_on_the_command_line(name: str) -> None:
    shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).output
    for field in option_fields(VERBS[name]):
        if field.option.in_command_line:
            names = [field.label] if field.option.is_argument else field.flags
            assert all(each in shown for each in names)
            assert field.option.help.split()[0] in shown


def test_defaults_of_the_models_in_memory_are_those_of_the_verbs() -> None:
    from vlpress.eval import compare, compare_many, evaluate_endpoint, evaluate_model

    for function in (evaluate_model, evaluate_endpoint):
        assert inspect.signature(function).parameters["batch_size"].default == BATCH_SIZE
    for judge in (compare, compare_many):
        assert inspect.signature(judge).parameters["margin"].default == CompareOptions.margin


def test_reported_commands_are_parsed_by_the_shell() -> None:
    words = command_words(EvaluateOptions, {"endpoint_extra": '{"top_k": 1}', "out": "a b"})
    assert (
        shlex.split(shlex.join(words)) == words == ["--endpoint-extra", '{"top_k": 1}', "-o", "a b"]
    )
