"""Command-line parameters from the dataclasses of options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING
from typing import Annotated, Any

import typer

from ..common.options import OptionField, Options, option_fields

Command = Callable[..., None]


def command(
    app: typer.Typer, options: type[Options], name: str | None = None
) -> Callable[[Command], Command]:
    """Register a function as a command whose parameters are the fields of a dataclass.

    The function is called with a dictionary of the fields' values, and with its own further
    parameters, which exist on the command line only.

    Args:
        app: gets the command.
        options: its options.
        name: of the command; None: the function's.
    """
    shown = [field for field in option_fields(options) if field.option.in_command_line]

    def decorate(function: Command) -> Command:
        _, *own = inspect.signature(function, eval_str=True).parameters.values()

        def call(**values: Any) -> None:
            flags = {parameter.name: values.pop(parameter.name) for parameter in own}
            function(values, **flags)

        own_keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        parameters = [*map(_parameter, shown), *own_keywords]
        # typer reads the signature for names and defaults, and the annotations for types.
        vars(call)["__signature__"] = inspect.Signature(parameters)
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name or function.__name__, help=inspect.getdoc(function))(call)
        return function

    return decorate


def _parameter(field: OptionField) -> inspect.Parameter:
    """Convert a field to a parameter that typer understands.

    Ranges are not passed on: `Options` checks them, with the same message as in Python.
    """
    option, default = field.option, field.default
    is_ranged = option.minimum is not None or option.maximum is not None
    described: dict[str, Any] = {
        "help": f"{option.help} Allowed: {field.allowed}." if is_ranged else option.help,
        "metavar": option.metavar,
        "envvar": option.variable,
        "show_default": option.default_text or default not in (None, MISSING),
        "rich_help_panel": option.panel,
    }
    if values := field.choices or option.suggestions:
        described["autocompletion"] = _completion(values)
    kind: Any = list[field.kind] if field.is_repeatable else field.kind  # type: ignore[name-defined]
    if option.is_argument:
        info: Any = typer.Argument(**described)
    else:
        info = typer.Option(*field.flags, **described)
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is MISSING else default,
        annotation=Annotated[kind | None if default is None else kind, info],
    )


def _completion(values: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a function that completes a word; shells complete paths if no value fits."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete
