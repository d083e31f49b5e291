"""Stand-ins for modules that VLMEvalKit imports for benchmarks that are not run here.

ModelScope's distribution requires about a hundred packages and imports the code of all its
benchmarks. A stand-in can be imported, inherited from and named in annotations; calling one raises
an error, so that no result can come from it. A module that is installed is never replaced.
"""

from __future__ import annotations

import sys
from collections.abc import MutableSequence, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

NAMES = frozenset(
    "Levenshtein anthropic boto3 botocore datasets editdistance ipdb jieba joblib json_repair "
    "math_verify nltk pylatexenc rouge scipy sklearn termcolor vertexai".split()
)


class Absent:
    """An attribute of a module that is not installed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self._name}.{name}")

    def __call__(self, *_arguments: object, **_options: object) -> NoReturn:
        """Refuse to be called.

        Raises:
            ModuleNotFoundError: always.
        """
        raise ModuleNotFoundError(f"{self._name} is not installed; nothing here needs it")

    def __mro_entries__(self, _bases: Sequence[object]) -> tuple[type, ...]:
        return ()

    def __getitem__(self, _key: object) -> Absent:
        return self

    def __or__(self, _other: object) -> Any:
        return Any

    __ror__ = __or__


class AbsentModule(ModuleType):
    """A module that is not installed."""

    __path__: MutableSequence[str] = []  # noqa: RUF012  # never changed

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] not in NAMES:
            return None
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return AbsentModule(spec.name)

    def exec_module(self, _module: ModuleType) -> None:
        pass


def allow_absent_modules() -> None:
    """Let the modules of `NAMES` be imported; the finder is the last, after all installed ones."""
    sys.meta_path.append(_Finder())
