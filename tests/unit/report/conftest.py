"""Fixtures of the report's tests."""

from pathlib import Path

import pytest
from synthetic_runs import TreeMaker


@pytest.fixture
def tree_maker(tmp_path: Path) -> TreeMaker:
    """Writes its images to ``tmp_path``."""
    return TreeMaker(tmp_path)
