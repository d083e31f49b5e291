"""The built wheel, installed without dependencies and used from another directory."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import vlpress
from vlpress.quant.kernels import library

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("model", "calib", "quant", "eval")


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command without this checkout on its path; return its standard output."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(
    scope="module",
    params=[False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["without kernels", "with kernels"],
)
def has_kernels(request: pytest.FixtureRequest) -> bool:
    """Whether the wheel is built with the CPU kernels, whose compilation takes half a minute."""
    return bool(request.param)


@pytest.fixture(scope="module")
def wheel(has_kernels: bool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q"]
    if not has_kernels:
        pip += ["--config-settings", "wheel.cmake=false"]
    run(*pip, "--no-build-isolation", "--no-deps", "--no-index", "-w", out, ROOT, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment with the wheel and the dependencies of this one."""
    home = tmp_path_factory.mktemp("env")
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    run(*pip, "install", "-q", "--no-deps", "--no-index", wheel, cwd=home)
    # A plain path line does not process that folder's own .pth files (an editable vlpress).
    (site_packages(python) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def site_packages(python: Path) -> Path:
    return Path(
        run(
            python,
            "-c",
            "import sysconfig; print(sysconfig.get_path('purelib'))",
            cwd=python.parent,
        ).strip()
    )


def packaged_files() -> set[str]:
    """Return the names in the wheel of all files of the source tree that it must contain."""
    sources = {"vlpress": ROOT / "src" / "vlpress"} | {f"vlpress/{r}": ROOT / r for r in PACKAGES}
    names = set()
    for prefix, folder in sources.items():
        for path in folder.rglob("*"):
            inside = path.relative_to(folder)
            linked = prefix == "vlpress" and inside.parts[0] in PACKAGES
            # C++ sources are compiled into the library inside the wheel.
            compiled = path.suffix in (".cpp", ".h") or "__pycache__" in inside.parts
            if path.is_file() and not linked and not compiled:
                names.add(f"{prefix}/{inside.as_posix()}")
    return names


def test_wheel_holds_every_source_and_data_file(wheel: Path, has_kernels: bool) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    # An editable installation compiles the kernels into the source tree.
    compiled = f"vlpress/quant/kernels/{library.LIBRARY}"
    assert packaged_files() - names - {compiled} == set()
    assert "vlpress/py.typed" in names
    built = has_kernels and not isinstance(library.find_kernels("portable"), str)
    assert (compiled in names) == built
    assert not [name for name in names if name.endswith((".cpp", ".h"))]


def test_wheel_is_one_for_all_pythons(wheel: Path) -> None:
    assert wheel.name.startswith(f"vlpress-{vlpress.__version__}-py3-none-")


def test_wheel_adds_one_name_to_site_packages(installed: Path) -> None:
    added = {path.name for path in site_packages(installed).iterdir()}
    assert added == {"vlpress", f"vlpress-{vlpress.__version__}.dist-info", "borrowed.pth"}


def test_version_from_another_directory(installed: Path, tmp_path: Path) -> None:
    for command in ([installed.parent / "vlpress"], [installed, "-m", "vlpress"]):
        assert run(*command, "--version", cwd=tmp_path) == f"vlpress {vlpress.__version__}\n"


@pytest.mark.slow
def test_packages_import_despite_files_of_the_same_name(installed: Path, tmp_path: Path) -> None:
    """A `model.py` in the working directory does not shadow `vlpress.model`."""
    for package in PACKAGES:
        (tmp_path / f"{package}.py").write_text("raise ImportError('the wrong module')\n")
    code = (
        "import vlpress, vlpress.model.loading, vlpress.calib, vlpress.quant, vlpress.eval\n"
        "for name in vlpress.__all__: getattr(vlpress, name)\n"
        "print(vlpress.__file__)"
    )
    where = Path(run(installed, "-c", code, cwd=tmp_path).strip())
    assert where.is_relative_to(site_packages(installed))


def test_the_command_line_module_does_not_import_torch(installed: Path, tmp_path: Path) -> None:
    code = "import sys, vlpress.cli.main; print(['torch' in sys.modules, 'numpy' in sys.modules])"
    assert run(installed, "-c", code, cwd=tmp_path) == "[False, False]\n"
