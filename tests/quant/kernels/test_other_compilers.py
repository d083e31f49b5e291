"""The kernels compiled by Clang, and for arm64 in an emulator, where these are installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import paths
import pytest

from vlpress.quant.kernels import library

pytestmark = pytest.mark.slow

ROOT = paths.ROOT
SOURCES = ROOT / "quant" / "kernels" / "cpu"
CHECK = Path(__file__).with_name("check_kernels.cpp")
WARNINGS = ["-Wall", "-Wextra", "-Werror"]


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


def flags() -> dict[str, list[str]]:
    """Compiler flags of each instruction set's source file, from CMakeLists.txt."""
    text = (ROOT / "CMakeLists.txt").read_text()
    variables: dict[str, str] = {}
    for name, value in re.findall(r"^set\((AVX\w+) ([^)]*)\)", text, re.M):
        for other, expansion in variables.items():
            value = value.replace(f"${{{other}}}", expansion)
        variables[name] = value
    return {f"{name.lower()}.cpp": value.split() for name, value in variables.items()}


def build(compiler: str, folder: Path, *, x86: bool, static: bool = False) -> Path:
    """Compile the kernels, with warnings as errors, and the program that checks them."""
    objects = []
    for source in sorted(SOURCES.glob("*.cpp")):
        extra = flags().get(source.name, []) if x86 else []
        objects.append(folder / f"{source.stem}.o")
        command = [compiler, "-std=gnu++17", "-O3", *WARNINGS, *extra, "-c", str(source)]
        subprocess.run([*command, "-o", str(objects[-1])], check=True)
    program = folder / "check"
    # -O1, because GCC 12 for arm64 crashes when it vectorizes the loops of this file.
    command = [compiler, "-std=gnu++17", "-O1", f"-I{SOURCES}", str(CHECK), *map(str, objects)]
    command += ["-static"] if static else []
    subprocess.run([*command, "-o", str(program), "-ldl"], check=True)
    return program


def test_flags_are_those_of_the_build() -> None:
    assert flags()["avx2.cpp"] == ["-mavx2", "-mfma", "-mf16c"]
    assert {"-mfma", "-mavx512vnni", "-mavx512bf16"} <= set(flags()["avx512.cpp"])
    assert all((SOURCES / name).is_file() for name in flags())


@needs("clang++")
def test_clang(tmp_path: Path) -> None:
    program = build("clang++", tmp_path, x86=True)
    for name in library.NAMES:
        if not isinstance(library.find_kernels(name), str):
            done = subprocess.run([program, name], capture_output=True, text=True, check=False)
            assert (done.stdout, done.returncode) == (f"{name}: 0 wrong\n", 0)


@needs("aarch64-linux-gnu-g++", "qemu-aarch64")
def test_arm64(tmp_path: Path) -> None:
    program = build("aarch64-linux-gnu-g++", tmp_path, x86=False, static=True)
    command = ["qemu-aarch64", str(program), ""]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("portable: 0 wrong\n", 0)
