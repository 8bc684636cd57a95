"""The troubleshooting table quotes what the code says: each message in it is looked for in the sources."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIELD = "\0"


def symptoms():
    """Messages of the table's first column: what stands between backticks and has a space. ``…`` stands for a value."""
    table = (ROOT / "docs" / "cluster.md").read_text("utf-8").partition("## When something is wrong")[2]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| ")][1:]
    return [quoted for cell in cells for quoted in re.findall(r"`([^`]*)`", cell) if " " in quoted]


def messages():
    """Every text of the package, a field of an f-string as one character that no text has."""
    for path in (ROOT / "nemo_axpo").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else FIELD for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_each_quoted_message_is_one_of_ours():
    quoted, ours = symptoms(), list(messages())
    assert len(quoted) >= 9
    said = {text: re.compile(".".join(map(re.escape, re.split("…", text)))) for text in quoted}
    assert [text for text, pattern in said.items() if not any(pattern.search(message) for message in ours)] == []
