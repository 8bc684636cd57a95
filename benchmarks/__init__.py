"""Measurements; each file runs as a script, ``python benchmarks/sampler.py``, or as a module, ``python -m benchmarks.sampler``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # they import one another as scripts do
