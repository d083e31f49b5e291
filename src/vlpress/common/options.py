"""Options of a verb: one dataclass field gives name, type, default, range and help text.

A field annotated with an `Option` becomes a keyword argument of the Python function (`verb`), a
parameter of the command line (`cli.parameters`) and words of a command that repeats it
(`command_words`). Adding an option is adding a field:

    limit: Annotated[int | None, Option("Questions per benchmark.", minimum=1)] = None

Groups of options that several verbs share are dataclasses of keyword-only fields; a verb derives
from its groups. Python collects inherited fields from the last base class to the first, so bases
are listed in the reverse order of the help.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin
from typing import get_type_hints as type_hints

from .near_misses import did_you_mean, near_misses

P = ParamSpec("P")
R = TypeVar("R")
O = TypeVar("O", bound="Options")  # noqa: E741

SCALARS = (bool, int, float, str, Path)
"""Types that an option of the command line can have."""


@dataclass(frozen=True)
class Option:
    """The part of an option's definition that its annotation and default do not give."""

    help: str
    _: KW_ONLY
    flags: tuple[str, ...] = ()
    """On the command line; empty: the field's name with dashes."""
    is_argument: bool = False
    """Given by position on the command line."""
    command_flag: str = ""
    """Of `flags`, the one in stored commands; empty: the first."""
    metavar: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    pattern: str | None = None
    """Regular expression of allowed values, which `allowed` describes."""
    allowed: str = ""
    default_text: str | None = None
    """Shown in the help in place of the default."""
    panel: str | None = None
    """Heading of the options in the help that it belongs to."""
    suggestions: tuple[str, ...] = ()
    """Values that a shell completes; others are allowed too."""
    variable: str | None = None
    """Environment variable that the command line reads when the option is not given."""
    is_recorded: bool = True
    """Part of a stored command; False for options that do not affect the result."""
    in_command_line: bool = True
    """False for options of the Python function only."""


@dataclass(frozen=True)
class OptionField:
    """One option of a verb, resolved from its dataclass field."""

    name: str
    kind: type
    """One of `SCALARS`: of a union the first, of a sequence that of its elements."""
    is_repeatable: bool
    choices: tuple[str, ...]
    """Values of its `Literal`; empty if it has none."""
    default: Any
    """`dataclasses.MISSING` if the option is required."""
    option: Option

    @property
    def flags(self) -> tuple[str, ...]:
        """Names on the command line."""
        return self.option.flags or (f"--{self.name.replace('_', '-')}",)

    @property
    def label(self) -> str:
        """Name in messages."""
        return self.option.metavar or self.name if self.option.is_argument else self.flags[0]

    @property
    def allowed(self) -> str:
        """Description of the allowed values: choices, a range, or a pattern's; may be empty."""
        low, high = self.option.minimum, self.option.maximum
        if low is None and high is None:
            return ", ".join(self.choices) or self.option.allowed
        if high is None:
            return f"{low:g} or more"
        return f"{high:g} or less" if low is None else f"{low:g} to {high:g}"

    def convert(self, value: Any) -> Any:
        """Turn a string into a path where the option is one, and vice versa; a number into text.

        Numbers are converted where the option's text has a pattern, such as `N or NAME=N`.
        """
        is_name = isinstance(value, str | Path) and self.kind in (str, Path)
        is_number = type(value) is int and self.kind is str and bool(self.option.pattern)
        return self.kind(value) if is_name or is_number else value

    def check(self, value: Any) -> None:
        """Check one value.

        Raises:
            ValueError: it is none of the choices, does not match the pattern, or is out of range.
        """
        low, high, pattern = self.option.minimum, self.option.maximum, self.option.pattern
        is_allowed = (
            (low is None or value >= low)
            and (high is None or value <= high)
            and (not self.choices or value in self.choices)
            and (not pattern or re.fullmatch(pattern, value))
        )
        if not is_allowed:
            hint = did_you_mean(near_misses(str(value), self.choices))
            raise ValueError(
                f"Invalid value for '{self.label}': {value!r};{hint} allowed: {self.allowed}"
            )


@dataclass(frozen=True)
class Options:
    """Base class of groups of options; checks and converts the values of annotated fields.

    Raises:
        ValueError: a value is not allowed; the message names the option of the command line.
    """

    def __post_init__(self) -> None:
        for field in option_fields(type(self)):
            value = getattr(self, field.name)
            if value is None:
                continue
            # A single string is a sequence too, but of characters.
            is_many = field.is_repeatable and not isinstance(value, str | Path | int)
            values = tuple(map(field.convert, value if is_many else (value,)))
            for each in values:
                field.check(each)
            object.__setattr__(self, field.name, values if field.is_repeatable else values[0])

    def group(self, kind: type[O]) -> O:
        """The options of one group; fields that this verb does not have keep their defaults."""
        names = [field.name for field in fields(kind) if hasattr(self, field.name)]
        return kind(**{name: getattr(self, name) for name in names})


def option_fields(kind: type[Options]) -> tuple[OptionField, ...]:
    """Return the annotated fields of a dataclass of options, in the order of the help."""
    hints = type_hints(kind, include_extras=True)
    resolved = []
    for field in fields(kind):
        annotation = hints[field.name]
        if get_origin(annotation) is Annotated:
            plain, option = get_args(annotation)
            resolved.append(_resolve(field.name, plain, field.default, option))
    return tuple(resolved)


def elements(value: Any) -> tuple[Any, ...]:
    """Return the values of a repeatable option, which `Options` stores as a tuple; () for None."""
    return () if value is None else tuple(value)


def _resolve(name: str, annotation: Any, default: Any, option: Option) -> OptionField:
    types = _members(annotation)
    literals = [each for each in types if get_origin(each) is Literal]
    choices = tuple(value for each in literals for value in get_args(each))
    sequences = [each for each in types if get_origin(each) is Sequence]
    elements = [member for each in sequences for member in _members(get_args(each)[0])]
    candidates = [*types, *elements, *([str] if choices else [])]
    kind = next((each for each in candidates if each in SCALARS), object)
    return OptionField(name, kind, bool(sequences), choices, default, option)


def _members(annotation: Any) -> list[Any]:
    """The types of a union but for None; of another type, itself."""
    is_union = get_origin(annotation) in (Union, UnionType)
    types = get_args(annotation) if is_union else (annotation,)
    return [each for each in types if each is not NoneType]


def verb(options: Callable[P, O]) -> Callable[[Callable[[O], R]], Callable[P, R]]:
    """Turn a function of a dataclass of options into one of keyword arguments.

    The new function has the signature of the dataclass, and its docstring lists the options.

    Args:
        options: the dataclass.
    """

    def decorate(function: Callable[[O], R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return function(options(*args, **kwargs))

        assert isinstance(options, type)
        call.__doc__ = _with_arguments(inspect.getdoc(function) or "", option_fields(options))
        vars(call)["__signature__"] = _signature(options, function)
        return call

    return decorate


def _signature(options: type[Options], function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a dataclass with plain types, and of a function what it returns."""
    hints, signature = type_hints(options), inspect.signature(options)
    parameters = [p.replace(annotation=hints[p.name]) for p in signature.parameters.values()]
    returned = inspect.signature(function).return_annotation
    return signature.replace(parameters=parameters, return_annotation=returned)


def _with_arguments(doc: str, options: Sequence[OptionField]) -> str:
    """Insert the section `Args` before the other sections of a docstring."""
    lines = [f"    {each.name}: {each.option.help}" for each in options]
    section = "\n".join(["Args:", *lines])
    before, mark, after = doc.partition("\n\nReturns:")
    if not mark:
        before, mark, after = doc.partition("\n\nRaises:")
    return f"{before}\n\n{section}{mark}{after}"


def command_words(kind: type[Options], values: Mapping[str, Any]) -> list[str]:
    """Write options as the words of a command line.

    Args:
        kind: the verb's dataclass.
        values: by field name, in the order of the words; None and False are left out.
    """
    by_name = {field.name: field for field in option_fields(kind)}
    words = []
    for name, value in values.items():
        field = by_name[name]
        if value is None or value is False:
            continue
        flag = [] if field.option.is_argument else [field.option.command_flag or field.flags[0]]
        for each in value if field.is_repeatable else (value,):
            words += flag if each is True else [*flag, _word(each)]
    return words


def recorded(options: Options, *, always: Sequence[str]) -> dict[str, Any]:
    """Values that a stored command needs to repeat a call.

    Args:
        options: of the call.
        always: fields that come first, and with their default too; of the others, those that
            differ from it and affect the result.
    """
    values = {name: getattr(options, name) for name in always}
    for field in option_fields(type(options)):
        value = getattr(options, field.name)
        if field.option.is_recorded and field.option.in_command_line and value != field.default:
            values.setdefault(field.name, value)
    return values


def _word(value: Any) -> str:
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)
