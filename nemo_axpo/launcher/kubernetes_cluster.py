"""What a Kubernetes cluster is: images, volumes, adapters, secrets. A file of its own, as one cluster runs many recipes.

Keys are those of the NeMo launcher's ``conf/cluster/k8s.yaml``, which this schema takes as it is, and a few of ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from nemo_axpo.config.load import config_directory
from nemo_axpo.config.messages import did_you_mean
from nemo_axpo.config.schema import Section
from nemo_axpo.errors import ConfigError, rule_message


def _as_text(value: Any) -> Any:
    """Numbers as YAML and Hydra read them; Kubernetes wants text."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Text = Annotated[str, BeforeValidator(_as_text)]
Number = Annotated[str, BeforeValidator(_as_text), Field(pattern=r"^\d+$")]


class NfsVolume(Section):
    """A directory of an NFS server, mounted under its own path."""

    server: str | None = None
    """Host name or address."""
    path: str | None = None
    """Exported directory."""


class HostVolume(Section):
    """A directory that every node has, mounted under its own path."""

    path: str | None = None
    """Absolute."""
    type: str = "Directory"
    """As Kubernetes knows it: Directory must be there, DirectoryOrCreate need not."""


class ClaimedVolume(Section):
    """A claim that exists."""

    claimName: str | None = None
    """Of the pods' namespace."""
    subPath: str | None = None
    """Directory of the volume; null: its root."""
    mountPath: str | None = None
    """Null: ``/subPath``."""


class Volumes(Section):
    """Where models, data and results lie; every one that is filled in is mounted."""

    nfs: NfsVolume = NfsVolume()
    hostPath: HostVolume = HostVolume()
    persistentVolumeClaim: ClaimedVolume = ClaimedVolume()


class PodRequests(Section):
    """What a pod is sure to get, besides its devices."""

    cpu: Text | None = None
    """Cores; null: none are asked for, and other pods of the node may take them."""
    memory: Text | None = None
    """As in 512Gi, ``/dev/shm`` included; null: none is asked for."""


class KubernetesConfig(Section):
    """A cluster; ``conf/kubernetes/k8s.yaml`` is the template."""

    container: str
    """Image of the trainer."""
    server_container: str | None = None
    """Of generation servers; null: ``container``."""
    pull_secret: str | None = None
    """Secret of the images' registry; null: it asks for none."""
    shm_size: str = "512Gi"
    """Upper bound of ``/dev/shm``, which lives in the node's memory."""
    volumes: Volumes = Volumes()
    """Of models, data and results."""
    nfs_server: str | None = None
    """Older name of ``volumes.nfs.server``."""
    nfs_path: str | None = None
    """Older name of ``volumes.nfs.path``."""
    ib_resource_name: str | tuple[str, ...] = "nvidia.com/hostdev"
    """Resource of the InfiniBand adapters, or several."""
    ib_count: Number | tuple[Number, ...] = "8"
    """Adapters of a node, one number a resource; "0": none."""
    ib_network_annotation: str = ""
    """Networks of the adapters, with commas (Multus); empty: none."""
    server_ib_count: Number | tuple[Number, ...] | None = None
    """Adapters of a server's pod; null: the share of its GPUs, at least one."""
    dns_policy: str | None = None
    """Of all pods; null: Kubernetes' default."""
    namespace: str | None = None
    """Null: the one that kubectl or helm is set to."""
    workdir: str = "/opt/nemo_axpo"
    """Where commands run: the images' checkout, or one on a volume."""
    env_vars: Mapping[str, Text] = {}
    """Environment of trainer and servers."""
    secrets: tuple[str, ...] = ()
    """Names of Secrets whose entries become the trainer's environment: WANDB_API_KEY, TAVILY_API_KEY."""
    seccomp_profile: str | None = None
    """Of the trainer, whose tools' sandbox needs ``unshare``: Unconfined, RuntimeDefault, or a profile's path on the nodes; null:
    what the nodes do of themselves."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """How often a trainer that failed goes on from its last checkpoint before the job counts as failed."""
    trainer_requests: PodRequests = PodRequests()
    """Of each of the trainer's pods."""
    server_requests: PodRequests = PodRequests()
    """Of each server's pod."""

    @model_validator(mode="after")
    def _is_whole(self) -> KubernetesConfig:
        nfs = (self.volumes.nfs.server or self.nfs_server, self.volumes.nfs.path or self.nfs_path)
        claim = self.volumes.persistentVolumeClaim
        for is_wrong, rule in (
            (bool(nfs[0]) != bool(nfs[1]), "an NFS volume has a server and a path"),
            (claim.claimName and not (claim.mountPath or claim.subPath), "a claim has a mountPath or a subPath"),
            (len(_listed(self.ib_resource_name)) != len(_listed(self.ib_count)),
             "ib_count has a number for every ib_resource_name"),
            (self.server_ib_count is not None
             and len(_listed(self.server_ib_count)) != len(_listed(self.ib_resource_name)),
             "server_ib_count has a number for every ib_resource_name"),
        ):  # fmt: skip
            if is_wrong:
                raise ValueError(rule)
        return self

    def mounts(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Every volume as a pod lists it, with its mount as a container does, ``/dev/shm`` first."""
        memory = {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": self.shm_size}}
        found = [(memory, {"name": "dshm", "mountPath": "/dev/shm"})]
        server, path = self.volumes.nfs.server or self.nfs_server, self.volumes.nfs.path or self.nfs_path
        if server and path:
            found.append(({"name": "nfs", "nfs": {"server": server, "path": path}}, {"name": "nfs", "mountPath": path}))
        host = self.volumes.hostPath
        if host.path:
            volume = {"name": "host", "hostPath": {"path": host.path, "type": host.type}}
            found.append((volume, {"name": "host", "mountPath": host.path}))
        claim = self.volumes.persistentVolumeClaim
        if claim.claimName:
            mount = {"name": "claim", "mountPath": claim.mountPath or f"/{(claim.subPath or '').strip('/')}"}
            volume = {"name": "claim", "persistentVolumeClaim": {"claimName": claim.claimName}}
            found.append((volume, mount | ({"subPath": claim.subPath} if claim.subPath else {})))
        return found

    def trainer_adapters(self) -> dict[str, str]:
        """Adapters of a trainer's pod by resource."""
        return _nonzero(self.ib_resource_name, _listed(self.ib_count))

    def server_adapters(self, *, share: float) -> dict[str, str]:
        """Adapters of a server's pod, whose GPUs are ``share`` of a node's, by resource."""
        if self.server_ib_count is not None:
            return _nonzero(self.ib_resource_name, _listed(self.server_ib_count))
        counts = [str(max(1, int(int(count) * share))) if int(count) else "0" for count in _listed(self.ib_count)]
        return _nonzero(self.ib_resource_name, counts)


def load_kubernetes(name: str, *, changes: Sequence[str] = ()) -> KubernetesConfig:
    """``conf/kubernetes/NAME.yaml`` or a file, changed by ``key=value``. ConfigError for what does not fit the schema."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else config_directory() / "kubernetes" / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(
            rule_message("--kubernetes is a YAML file or k8s", got=name, cure="copy conf/kubernetes/k8s.yaml")
        )
    try:
        merged = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(changes)))
        values = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(rule_message(f"{path} must resolve", got=error, cure="correct the key it names")) from None
    return kubernetes_config(values, source=str(path))


def kubernetes_config(values: Any, *, source: str) -> KubernetesConfig:
    """``values`` under the schema; ConfigError with a line for each key that does not fit. ``source``: where they stand."""
    try:
        return KubernetesConfig.model_validate(values)
    except ValidationError as error:
        lines = [_describe(problem, source=source) for problem in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def check_on_a_volume(path: str, cluster: KubernetesConfig, *, what: str) -> None:
    """ConfigError where ``path`` would be written into a container and lost with its pod."""
    mounted = [mount["mountPath"] for _, mount in cluster.mounts()[1:]]
    if not any(PurePosixPath(path).is_relative_to(mount) for mount in mounted):
        rule = f"{what} lies on a volume of the pods ({', '.join(mounted) or 'the cluster file names none'})"
        cure = "fill in volumes.nfs, hostPath or persistentVolumeClaim, or choose a directory below one"
        raise ConfigError(rule_message(rule, got=path, cure=cure))


def _describe(problem: Any, *, source: str) -> str:
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        known = KubernetesConfig.model_fields
        cure = did_you_mean(key, known) or f"remove it; known: {', '.join(known)}"
        return rule_message(f"{source}: unknown key {key} of a cluster", got=repr(problem["input"]), cure=cure)
    message = problem["msg"].removeprefix("Value error, ")
    cure = "see nemo_axpo/launcher/kubernetes_cluster.py"
    got = repr(problem["input"]) if key else "another"
    return rule_message(f"{source}: {key + ': ' if key else ''}{message}", got=got, cure=cure)


def _listed(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _nonzero(names: str | tuple[str, ...], counts: Sequence[str]) -> dict[str, str]:
    return {name: count for name, count in zip(_listed(names), counts, strict=True) if int(count)}
