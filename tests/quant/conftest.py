import sys
from pathlib import Path

# The random models live beside the calib tests; both rooms' tests build on them.
sys.path.insert(0, str(Path(__file__).parents[1] / "calib"))
