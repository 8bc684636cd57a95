"""Every number in the YAML files says where it comes from: a source, or "ours"."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "conf").rglob("*.yaml"), *(ROOT / "nemo_axpo" / "aligner" / "conf").glob("*.yaml")])
SOURCE = re.compile(r"\bours\b|the paper|ProRL|NeMo's|PyTorch's|the published|of a DGX|DGX's", flags=re.IGNORECASE)
WHOLE_FILE = re.compile(r"every (other )?number here is ours", flags=re.IGNORECASE)
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def unexplained(text):
    """Lines with a number and no source: beside it, in the comment above its key or an enclosing one, or for the whole file."""
    lines = text.split("\n")
    if WHOLE_FILE.search(" ".join(comment_above(lines, next(i for i, line in enumerate(lines) if line[:1] != "#")))):
        return []
    found = []
    for line, parents in numbers(yaml.compose(text), parents=()):
        said = [
            lines[line].partition("  # ")[2],
            *(part for key in parents if key for part in comment_above(lines, key)),
        ]
        if not SOURCE.search(" ".join(said)):
            found.append(lines[line].strip())
    return found


def numbers(node, *, parents):
    """The line of every number, and those of the keys around it."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from numbers(value, parents=(*parents, key.start_mark.line))
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from numbers(value, parents=parents)
    elif node is not None and node.tag in _NUMBERS:
        yield node.start_mark.line, parents


def comment_above(lines, line):
    """The whole-line comments that end directly above ``line``."""
    start = line
    while start and lines[start - 1].lstrip().startswith("#"):
        start -= 1
    return [text.strip(" #") for text in lines[start:line]]


def test_what_counts_as_a_source():
    assert unexplained("# The head is of the paper.\n\na: 1\n") == ["a: 1"]
    assert unexplained("a: 1  # ours\nb:\n  # ProRL's\n  c: [2, 3]\n") == []
    assert unexplained("# ours\nb:\n  c: {d: 4}\n\ne: 5\nf: x\n") == ["e: 5"]
    assert unexplained("# All. Every number here is ours.\na: 1\nb: 2.0\n") == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_number_has_its_source_beside_it(path):
    assert unexplained(path.read_text("utf-8")) == []
