"""How far one AXPO step under every parallel layout is from the same step on one process: docs/parallelism.md's table.

    OMP_NUM_THREADS=1 python benchmarks/parity.py --results benchmarks/results/parity.json --table docs/parallelism.md

The rollouts are fixed (tests/dist_cpu/axpo_step.py); a tiny Qwen3-VL, in float32, with tied and with untied embeddings;
gloo ranks on this machine. Of every quantity the worst of both models, both updates and all ranks.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from environment import argument_parser, write_result

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS / "dist_cpu"), str(TESTS / "unit")]

from layouts import LAYOUTS, Difference, difference, launch, results, save_checkpoints

ALONE = "one"
COLUMNS = ("logprobs", "loss", "metrics", "gradients", "weights")
BEGIN, END = "<!-- parity table: written by benchmarks/parity.py -->", "<!-- end of the parity table -->"


def measure(directory: Path) -> dict[str, Difference]:
    """Every layout's largest differences, over both checkpoints."""
    checkpoints = save_checkpoints(directory)
    for num_ranks in sorted({layout.num_ranks for layout in LAYOUTS.values()}):
        names = [name for name, layout in LAYOUTS.items() if layout.num_ranks == num_ranks]
        print(f"{num_ranks} ranks: {', '.join(names)}", flush=True)
        launch(checkpoints.values(), names, num_ranks=num_ranks)
    return {name: _worst(checkpoints, name=name) for name in LAYOUTS if name != ALONE}


def _worst(checkpoints: dict[str, Path], *, name: str) -> Difference:
    found = [difference(results(path, name), results(path, ALONE)[0]) for path in checkpoints.values()]
    return Difference(**{column: max(getattr(one, column) for one in found) for column in COLUMNS})


def table(differences: dict[str, Difference]) -> str:
    """Markdown, one row per layout."""
    lines = ["| layout | ranks | " + " | ".join(COLUMNS) + " |", "|---" * (2 + len(COLUMNS)) + "|"]
    for name, found in differences.items():
        values = " | ".join(f"{getattr(found, column):.1e}" for column in COLUMNS)
        lines.append(f"| `{name}` | {LAYOUTS[name].num_ranks} | {values} |")
    return "\n".join(lines)


def write_table(path: Path, text: str) -> None:
    """Replaces what stands between the two marks of the document at ``path``."""
    before, _, rest = path.read_text().partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{path} must hold {BEGIN!r} and {END!r}; got neither or one: add the marks")
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> None:
    """Measures, prints the table and writes both files where asked to."""
    parser = argument_parser(__doc__)
    parser.add_argument("--table", type=Path, help="document whose table is replaced")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        differences = measure(Path(directory))
    text = table(differences)
    print(text)
    if arguments.table:
        write_table(arguments.table, text)
    write_result(arguments.output, {"layouts": {name: vars(found) for name, found in differences.items()}})


if __name__ == "__main__":
    main()
