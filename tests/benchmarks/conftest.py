"""Benchmarks are scripts that import their neighbours: their folder comes first on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
