"""Who may import whom. Imports are read from the source, transitively and wherever they stand, functions included."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import nemo_axpo

PACKAGE = Path(nemo_axpo.__file__).parent
BACKENDS = {"megatron", "vllm", "tensorrt_llm"}


def imports_of(path: Path, *, package: Path) -> set[str]:
    """Full dotted names imported by a file: modules, and for ``from a import b`` also ``a.b``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = path.relative_to(package.parent).parts[: -node.level]
                base = ".".join([*parents, base] if base else parents)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def module_file(name: str, *, package: Path) -> Path | None:
    """Source file of a module of the package; None for anything else."""
    if name.split(".")[0] != package.name:
        return None
    path = package.parent.joinpath(*name.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def reached_libraries(start: Path, *, package: Path = PACKAGE) -> dict[str, str]:
    """Top-level names of outside modules which ``start`` reaches, each with the file that imports it."""
    found: dict[str, str] = {}
    seen, todo = set(), [start]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in imports_of(path, package=package):
            inside = module_file(name, package=package)
            if inside:
                todo.append(inside)
            elif name.split(".")[0] != package.name:
                found.setdefault(name.split(".")[0], str(path.relative_to(package.parent)))
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names}


def files_of(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py"))


@pytest.mark.parametrize("room", ["algorithms", "losses", "tools", "rewards", "data"])
def test_rooms_under_a_rule_exist(room):
    assert files_of(room), f"{room} was renamed: rename it in this test too, or its rule guards nothing"


def test_types_reach_the_standard_library_alone():
    assert reached_libraries(PACKAGE / "types.py") == {}


@pytest.mark.parametrize("path", files_of("algorithms"), ids=lambda path: path.name)
def test_algorithms_are_pure_python(path):
    assert reached_libraries(path) == {}


@pytest.mark.parametrize("path", files_of("losses"), ids=lambda path: path.name)
def test_losses_know_torch_alone(path):
    assert set(reached_libraries(path)) <= {"torch"}


@pytest.mark.parametrize(
    "path",
    [p for room in ("tools", "rewards", "data") for p in files_of(room)],
    ids=lambda p: f"{p.parent.name}/{p.name}",
)
def test_tools_rewards_and_data_never_reach_a_backend(path):
    reached = reached_libraries(path)
    assert not BACKENDS & set(reached), {name: reached[name] for name in BACKENDS & set(reached)}


def test_the_loop_names_no_backend():
    path = PACKAGE / "loop.py"
    named = {name for name in imports_of(path, package=PACKAGE) if name.startswith("nemo_axpo.")}
    allowed_rooms = {"algorithms", "data", "distributed", "rollouts", "types", "weight_sync"}
    outside = {name for name in named if name.split(".")[1] not in allowed_rooms and "engines.base" not in name}
    assert outside == set()
    assert not (BACKENDS | {"transformers"}) & set(reached_top_level(path))


def reached_top_level(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports_of(path, package=PACKAGE)}


def test_the_reader_follows_relative_late_and_indirect_imports(tmp_path):
    package = tmp_path / "pkg"
    (package / "room").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "room" / "__init__.py").write_text("")
    (package / "room" / "a.py").write_text("def f():\n    from ..other import g\n    return g\n")
    (package / "other.py").write_text("import os\nfrom pkg.room import b\n")
    (package / "room" / "b.py").write_text("import vllm.engine\n")
    reached = reached_libraries(package / "room" / "a.py", package=package)
    assert reached == {"vllm": "pkg/room/b.py"}
