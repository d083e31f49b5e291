"""Validation of data from files with pydantic; an error is one line with path, value and remedy.

Classes of public values are declared with `validated`: frozen, hashable dataclasses whose fields
pydantic checks on construction. `parse` builds them (or a pydantic model) from the data of a file.
`Integer`, `Real`, `OneOf` and `Allowed` are annotations of fields: they state a range once, and
that range is what an error calls allowed.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import CoreSchema, core_schema

T = TypeVar("T")

LONGEST_VALUE = 40
"""Characters of a value in a message."""
UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
ALLOWED = {
    "bool_type": "true or false",
    "string_type": "a string",
    "int_type": "a whole number",
    "none_required": "null",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a table of keys and values",
    "model_type": "a table of keys and values",
    "dataclass_type": "a table of keys and values",
}
"""Allowed values by pydantic's error type."""
PLAIN_KEY = re.compile(r"[\w-]{1,64}")

Truthy = Annotated[bool, BeforeValidator(bool)]
"""Any value, read as Python's `bool` reads it."""


def empty_to_none(value: object) -> object:
    """Replace null, 0, "", [] and {} by None."""
    return value or None


@dataclass(frozen=True)
class Allowed:
    """Annotation that describes the values of any type; `text` replaces pydantic's own message."""

    text: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return _describe(handler(source), self.text)


@dataclass(frozen=True)
class Integer:
    """Annotation of an `int` from `least` to `most`, both included; a bool is refused."""

    least: int
    most: int | None = None
    integral: bool = False
    """Accept a float without a fraction, which some libraries write for a whole number."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        schema: CoreSchema = core_schema.int_schema(strict=True, ge=self.least, le=self.most)
        if self.integral:
            schema = core_schema.no_info_before_validator_function(_drop_point, schema)
        span = f", at least {self.least}" if self.most is None else ""
        span = span or f" from {self.least} to {self.most}"
        return _describe(schema, f"a whole number{span}")


@dataclass(frozen=True)
class Real:
    """Annotation of a finite `float` with bounds; an `int` stays one, as it is written back so."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        check = core_schema.no_info_plain_validator_function(self._check)
        return _describe(check, self._text())

    def _check(self, value: object) -> float:
        # Without a conversion to float, which a whole number beyond 2**1024 has not.
        if isinstance(value, int | float) and not isinstance(value, bool) and self._holds(value):
            return value
        raise ValueError(self._text())

    def _holds(self, value: float) -> bool:
        # NaN fails every comparison, so the last one refuses it too.
        low = self.least is None or value >= self.least
        low = low and (self.above is None or value > self.above)
        low = low and (self.below is None or value < self.below)
        return low and (value < math.inf if self.most is None else value <= self.most)

    def _text(self) -> str:
        if self.least is not None and self.most is not None:
            return f"a number from {self.least:g} to {self.most:g}"
        bounds = {
            " above": self.above,
            ", at least": self.least,
            ", at most": self.most,
            ", below": self.below,
        }
        words = (f"{name} {bound:g}" for name, bound in bounds.items() if bound is not None)
        return f"a number{''.join(words)}"


@dataclass(frozen=True)
class OneOf:
    """Annotation of a value out of a few; `remedy` is added to the message."""

    values: tuple[Hashable, ...]
    remedy: str = ""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        text = ", ".join(map(str, self.values)) + (f"; {self.remedy}" if self.remedy else "")
        return _describe(core_schema.literal_schema(list(self.values)), text)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def validated(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass whose fields pydantic checks.

    Construction raises a ValueError of one line; `__post_init__` may check fields together.
    """
    made: Any = pydantic_dataclass(frozen=True, config=ConfigDict(extra="forbid"))(cls)
    check: Callable[..., None] = made.__init__
    names = _keys(made)

    @functools.wraps(check)
    def __init__(self: object, *args: Any, **values: Any) -> None:
        if len(args) > len(names):
            raise TypeError(f"{cls.__name__} has {len(names)} fields, but {len(args)} are given")
        # By name: pydantic would call a positional argument by its index.
        by_name = dict(zip(names, args, strict=False))
        try:
            check(self, **by_name, **values)
        except ValidationError as error:
            raise ValueError(explain(error, keys=names)) from None

    made.__init__ = __init__
    checked: type[T] = made
    return checked


def parse(
    kind: type[T],
    data: object,
    source: str = "",
    at: str = "",
    *,
    keys: Iterable[str] | None = None,
    remedy: str = "",
) -> T:
    """Build a value from the plain data of a file.

    Args:
        kind: a `validated` dataclass, a pydantic model, or an annotated type.
        data: tables as mappings, lists, strings, numbers and None.
        source: the file or section that messages begin with.
        at: path of the data in it, such as `step[1]`.
        keys: the known keys, where they are not the fields of `kind`.
        remedy: the end of messages about a value, for all fields.

    Raises:
        ValueError: a key is unknown or missing, or a value is not allowed; one line, for example
            `recipe: step[1].bits is 5; allowed: 2, 3, 4, 8`.
    """
    annotation: Any = kind
    try:
        value: T = _adapter(annotation).validate_python(data)
    except ValidationError as error:
        names = _keys(kind) if keys is None else list(keys)
        raise ValueError(explain(error, source, at, keys=names, remedy=remedy)) from None
    return value


def check_value(annotation: Any, value: object, name: str) -> None:
    """Check an argument of a function against the annotated type of a field.

    Raises:
        ValueError: it is out of range.
    """
    parse(annotation, value, at=name)


def explain(
    error: ValidationError,
    source: str = "",
    at: str = "",
    *,
    keys: Iterable[str] = (),
    remedy: str = "",
) -> str:
    """Describe the first problem of a pydantic error in one line; for the arguments see `parse`."""
    problem = error.errors(include_url=False)[0]
    # pydantic marks an error in a key, instead of its value, by a last part "[key]".
    kind, path = problem["type"], [part for part in problem["loc"] if part != "[key]"]
    prefix = f"{source}: " if source else ""
    if kind in UNKNOWN_KEY:
        key, owner = path[-1], join_path(at, path[:-1])
        allowed = f"; allowed: {', '.join(sorted(keys))}" if keys else ""
        return f"{prefix}{f'{owner}: ' if owner else ''}unknown key {shown(key)}{allowed}"
    field_path = join_path(at, path)
    if kind == "missing":
        return f"{prefix}{field_path} is missing; it is required"
    ending = f"; {remedy}" if remedy else ""
    context = problem.get("ctx", {})
    if kind == "value_error":
        return f"{prefix}{f'{field_path}: ' if field_path else ''}{context['error']}"
    value = shown(problem["input"])
    return f"{prefix}{field_path} is {value}; allowed: {_allowed(kind, problem)}{ending}"


def join_path(start: str, parts: Iterable[int | str]) -> str:
    """Write a path as `step[1].bits`; keys with other characters are quoted in brackets."""
    path = start
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        elif PLAIN_KEY.fullmatch(part):
            path += f".{part}" if path else part
        else:
            path += f"[{shown(part)}]"
    return path


def shown(value: object) -> str:
    """Show a value in a message: its `repr`, shortened to `LONGEST_VALUE` characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of too many digits, or nested too deeply
        text = f"of type {type(value).__name__}"
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def _allowed(kind: str, problem: Mapping[str, Any]) -> str:
    context = problem.get("ctx", {})
    if kind == "not_allowed":
        return str(context["allowed"])
    if kind == "literal_error":
        return str(context["expected"]).replace("'", "").replace(" or ", ", ")
    if kind == "too_short":
        count = context["min_length"]
        return f"at least {count} {'entry' if count == 1 else 'entries'}"
    message = str(problem["msg"]).removeprefix("Input should be ")
    return ALLOWED.get(kind, message)


def _describe(schema: CoreSchema, text: str) -> CoreSchema:
    return core_schema.custom_error_schema(
        schema,
        "not_allowed",
        custom_error_message="allowed: {allowed}",
        custom_error_context={"allowed": text},
    )


def _drop_point(value: object) -> object:
    return int(value) if type(value) is float and value.is_integer() else value


def _keys(kind: Any) -> list[str]:
    return [f.name for f in fields(kind)] if hasattr(kind, "__dataclass_fields__") else []


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
