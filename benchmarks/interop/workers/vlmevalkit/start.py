"""Run a script of this folder so that it can import VLMEvalKit on a machine without a GPU.

python start.py SCRIPT [ARGUMENT ...]
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from absent_modules import allow_absent_modules

sys.path.append(str(Path(__file__).resolve().parents[2]))
from serve_transformers import load_torchvision

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Prepare the imports, run the script."""
    allow_absent_modules()
    load_torchvision()
    del sys.argv[0]
    runpy.run_path(str(HERE / sys.argv[0]), run_name="__main__")


if __name__ == "__main__":
    main()
