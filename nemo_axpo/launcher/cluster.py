"""What a Slurm cluster is: queue, images, mounts. A file of its own, as one cluster runs many recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError

from nemo_axpo.config.load import config_directory
from nemo_axpo.config.messages import did_you_mean
from nemo_axpo.config.schema import Count, Section
from nemo_axpo.errors import ConfigError, rule_message

_CURES = {
    "time_limit": 'write it in quotes, as YAML counts 4:00:00 in seconds: "04:00:00", or "1-00:00:00" for a day',
    **{key: f"write a list: {key}: [one, two]" for key in ("mounts", "setup", "srun_args", "container_args")},
    "env": 'values are text: {NAME: "1"}',
}
_TIME = r"^(\d+-)?\d{1,2}:\d{2}:\d{2}$"


class ClusterConfig(Section):
    """A Slurm cluster; ``conf/cluster/slurm.yaml`` is the template."""

    account: str | None = None
    """Who pays; null: the user's own."""
    partition: str | None = None
    """Queue; null: the cluster's default."""
    time_limit: str = Field(default="04:00:00", pattern=_TIME)
    """Of a job: hours:minutes:seconds, or days-hours:minutes:seconds."""
    signal_before_s: Annotated[int, Field(ge=60)] = 900
    """How long before the limit the trainer is told to finish its step, save and be queued again."""
    gpus_per_node: Count = 8
    """GPUs of a node; every node of a job is asked for whole."""
    image: str | None = None
    """Container of the trainer as pyxis takes it; null: no container."""
    server_image: str | None = None
    """Of generation servers; null: ``image``."""
    tools_image: str | None = None
    """Of tool servers; null: ``image``."""
    mounts: tuple[str, ...] = ()
    """``path`` or ``path:path``; both sides the same, as the job script looks into the run directory too."""
    workdir: str = "/opt/nemo_axpo"
    """Where commands run; relative paths of a recipe begin here."""
    setup: tuple[str, ...] = ()
    """Lines of bash before the first srun."""
    sbatch: Mapping[str, str | int | bool] = {}
    """Further options of sbatch by name, without the dashes."""
    srun_args: tuple[str, ...] = ()
    """Further options of every srun."""
    container_args: tuple[str, ...] = ()
    """Further options of every srun that has an image: those that pyxis adds."""
    env: Mapping[str, str] = {}
    """Environment of the job; it holds against the image's own."""

    @property
    def mount_pairs(self) -> tuple[str, ...]:
        """``mounts`` as ``source:target``."""
        return tuple(mount if ":" in mount else f"{mount}:{mount}" for mount in self.mounts)

    @property
    def time_limit_s(self) -> int:
        """``time_limit`` in seconds."""
        days, _, clock = self.time_limit.rpartition("-")
        hours, minutes, seconds = map(int, clock.split(":"))
        return ((24 * int(days or 0) + hours) * 60 + minutes) * 60 + seconds

    def has_mounted(self, path: str) -> bool:
        """Whether ``path`` is the same directory in a container and on the node."""
        sources = [Path(mount.partition(":")[0]) for mount in self.mounts]
        return self.image is None or any(Path(path).is_relative_to(source) for source in sources)


def load_cluster(name: str, *, changes: Sequence[str] = ()) -> ClusterConfig:
    """``conf/cluster/NAME.yaml`` or a file, changed by ``key=value``. ConfigError for what does not fit the schema."""
    directory = config_directory() / "cluster"
    path = Path(name) if name.endswith((".yaml", ".yml")) else directory / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in directory.glob("*.yaml")))
        raise ConfigError(
            rule_message("--cluster is a YAML file or one of conf/cluster", got=name, cure=f"there: {known}")
        )
    try:
        merged = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(changes)))
        cluster = ClusterConfig.model_validate(OmegaConf.to_container(merged, resolve=True))
    except OmegaConfBaseException as error:
        raise ConfigError(rule_message(f"{path} must resolve", got=error, cure="correct the key it names")) from None
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(problem) for problem in error.errors())) from None
    _check_mounts(cluster)
    _check_queue(cluster)
    return cluster


def _describe(problem: Any) -> str:
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        cure = did_you_mean(key, ClusterConfig.model_fields) or f"known: {', '.join(ClusterConfig.model_fields)}"
        return rule_message(f"unknown key {key} of a cluster", got=repr(problem["input"]), cure=cure)
    rule = f"{key} of a cluster: {problem['msg'][0].lower()}{problem['msg'][1:]}"
    cure = _CURES.get(key.partition(".")[0], f"nemo-axpo keys --cluster {key}")
    return rule_message(rule, got=repr(problem["input"]), cure=cure)


def _check_mounts(cluster: ClusterConfig) -> None:
    for mount in cluster.mounts:
        source, _, target = mount.partition(":")
        if not source.startswith("/") or (target.partition(":")[0] or source) != source:
            rule = "a mount has the same absolute path on both sides: the job script looks into the run directory too"
            raise ConfigError(rule_message(rule, got=mount, cure=f"mount {source} as it is"))


def _check_queue(cluster: ClusterConfig) -> None:
    if cluster.signal_before_s >= cluster.time_limit_s:
        rule = "signal_before_s must be shorter than time_limit: a job would stop before it began, and come again"
        got = f"{cluster.signal_before_s} s before the end of {cluster.time_limit}"
        raise ConfigError(rule_message(rule, got=got, cure="raise time_limit, or lower signal_before_s"))
    if "array" in cluster.sbatch:
        rule = "a job writes one run directory, which the tasks of an array would share"
        cure = "submit every run by itself; an evaluation is divided by --shard I/N"
        raise ConfigError(rule_message(rule, got=f"sbatch.array={cluster.sbatch['array']}", cure=cure))
