"""What a job reads from disk: looked for before it is queued and again on its nodes, before anything is loaded."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path

from nemo_axpo.config.schema import Config
from nemo_axpo.errors import rule_message
from nemo_axpo.launcher.cluster import ClusterConfig

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILE_SUFFIXES = (".parquet", ".jsonl", ".json")


def input_paths(config: Config) -> Iterator[tuple[str, str]]:
    """Key and path of the model, and of questions or else of trajectories; hub ids are no paths."""
    if config.model.path is not None:
        yield "model.path", config.model.path
    if config.data.name != "files":
        yield from ((f"sft.trajectories[{i}]", path) for i, path in enumerate(config.sft.trajectories))
        return
    for section in ("files", "eval_files"):
        for number, entry in enumerate(getattr(config.data, section)):
            key = f"data.{section}[{number}]"
            named = {f"{key}.path": None if _is_hub_id(entry.path) else entry.path,
                     f"{key}.image_root": entry.image_root, f"{key}.keep": entry.keep}  # fmt: skip
            yield from ((name, path) for name, path in named.items() if path is not None)


def missing_inputs(config: Config) -> Iterator[str]:
    """Paths, other than the model's, that are not there; relative ones begin at the working directory."""
    for key, path in input_paths(config):
        if key != "model.path" and not Path(path).exists() and not glob.glob(path, recursive=True):
            got = path if Path(path).is_absolute() else f"{path}, below {Path.cwd()}"
            cure = "add its directory to mounts, or correct it (relative paths begin at workdir of the cluster's file)"
            yield rule_message(f"{key} can be read on every node", got=got, cure=cure)


def outside_mounts(config: Config, *, cluster: ClusterConfig) -> list[str]:
    """Keys with paths that a container sees only if the cluster mounts them by itself; ``key=path`` each."""
    start = Path(cluster.workdir)
    return [f"{key}={path}" for key, path in input_paths(config) if not cluster.has_mounted(str(start / path))]


def _is_hub_id(path: str) -> bool:
    """As ``nemo_axpo.data.tables`` tells them apart, which loads ``datasets``."""
    return bool(_HUB_ID.fullmatch(path)) and not path.endswith(_FILE_SUFFIXES) and not Path(path).exists()
