"""A job as Kubernetes takes it: a PyTorchJob of Kubeflow for the trainer, a StatefulSet for the generation servers.

Written against Kubeflow's v1 API and the NeMo launcher's charts; not yet applied to a cluster.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from pydantic import ValidationError

from nemo_axpo.config.load import config_directory
from nemo_axpo.config.schema import Section
from nemo_axpo.errors import ConfigError, rule_message
from nemo_axpo.launcher.job_request import JobRequest

_PORT = 8000
_RENDEZVOUS = 29_500


class NfsVolume(Section):
    """A directory of an NFS server."""

    server: str | None = None
    path: str | None = None


class HostVolume(Section):
    """A directory of every node."""

    path: str | None = None
    type: str = "Directory"


class ClaimedVolume(Section):
    """A claim that exists."""

    claimName: str | None = None
    mountPath: str | None = None


class Volumes(Section):
    """Where models, data and results lie; every one that is filled in is mounted."""

    nfs: NfsVolume = NfsVolume()
    hostPath: HostVolume = HostVolume()
    persistentVolumeClaim: ClaimedVolume = ClaimedVolume()


class KubernetesConfig(Section):
    """A cluster; ``conf/kubernetes/k8s.yaml`` is the template."""

    container: str
    server_container: str
    pull_secret: str | None = None
    shm_size: str = "512Gi"
    volumes: Volumes = Volumes()
    ib_resource_name: str = "nvidia.com/hostdev"
    ib_count: str = "8"
    dns_policy: str | None = None
    namespace: str = "default"
    workdir: str = "/opt/nemo_axpo"
    env_vars: Mapping[str, str] = {}
    secrets: tuple[str, ...] = ()


def load_kubernetes(name: str) -> KubernetesConfig:
    """``conf/kubernetes/NAME.yaml`` or a file; ConfigError for what does not fit the schema."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else config_directory() / "kubernetes" / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(
            rule_message("--kubernetes is a YAML file or k8s", got=name, cure="copy conf/kubernetes/k8s.yaml")
        )
    try:
        return KubernetesConfig.model_validate(OmegaConf.to_container(OmegaConf.load(path), resolve=True))
    except ValidationError as error:
        raise ConfigError(
            rule_message(f"{path} must fit its schema", got=error, cure="correct the keys named")
        ) from None


def manifest(request: JobRequest, cluster: KubernetesConfig) -> str:
    """YAML documents for ``kubectl apply``. ConfigError for a command that has no trainer."""
    if request.is_plain:
        rule, cure = "a manifest is of a job with a trainer", "run it where its directories are"
        raise ConfigError(rule_message(rule, got=request.command[0], cure=cure))
    documents = [_trainer(request, cluster)]
    if request.has_servers:
        documents = [_service(request, cluster), _servers(request, cluster), *documents]
    return yaml.safe_dump_all(documents, sort_keys=False)


def server_urls(request: JobRequest) -> list[str]:
    """The addresses that the pods of the StatefulSet will have."""
    name = _name(request)
    return [f"http://{name}-servers-{i}.{name}-servers:{_PORT}" for i in range(_num_servers(request))]


def _num_servers(request: JobRequest) -> int:
    servers = request.config.job.servers
    return servers.per_node * (servers.num_nodes or request.num_trainer_nodes)


def _trainer(request: JobRequest, cluster: KubernetesConfig) -> dict[str, Any]:
    job, name = request.config.job, _name(request)
    ranks = job.gpus_per_node if job.num_nodes else 1
    words = list(request.command)
    urls = server_urls(request) if request.has_servers else []
    if urls:
        words.append(f"engine.servers=[{','.join(urls)}]")
    args = [f"--nnodes={request.num_trainer_nodes}", "--rdzv-backend=c10d", f"--rdzv-id={name}",
            f"--rdzv-endpoint={name}-worker-0:{_RENDEZVOUS}", f"--nproc-per-node={ranks}", "-m", "nemo_axpo.cli", *words]  # fmt: skip
    container = _container(cluster, name="pytorch", image=cluster.container, command=["torchrun", *args],
                           gpus=request.config.trainer_gpus, has_network=request.num_trainer_nodes > 1)  # fmt: skip
    pod = _pod(cluster, container)
    if urls:
        wait = [
            "python3",
            "-m",
            "nemo_axpo.launcher.wait_for",
            "--timeout-s",
            str(60 * job.servers.start_timeout_min),
            *urls,
        ]
        pod["initContainers"] = [_container(cluster, name="wait", image=cluster.container, command=wait, gpus=0)]
    pod["restartPolicy"] = "OnFailure"  # it goes on from its last checkpoint
    worker = {"replicas": request.num_trainer_nodes, "restartPolicy": "OnFailure", "template": {"spec": pod}}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name, "namespace": cluster.namespace},
        "spec": {"pytorchReplicaSpecs": {"Worker": worker}},
    }


def _service(request: JobRequest, cluster: KubernetesConfig) -> dict[str, Any]:
    """Gives each server a name of its own."""
    name = f"{_name(request)}-servers"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": cluster.namespace},
        "spec": {"clusterIP": "None", "selector": {"app": name}, "ports": [{"port": _PORT}],
                 "publishNotReadyAddresses": True},
    }  # fmt: skip


def _servers(request: JobRequest, cluster: KubernetesConfig) -> dict[str, Any]:
    engine, servers, name = request.config.engine, request.config.job.servers, f"{_name(request)}-servers"
    command = [
        "python3", "-m", "nemo_axpo.engines.vllm_server.launch", "--host", "0.0.0.0", "--port", str(_PORT),
        "--checkpoint", str(request.config.model.path), "--dtype", engine.dtype,
        "--max-model-len", str(engine.max_model_len), "--max-num-seqs", str(servers.max_num_seqs),
        "--gpu-memory-utilization", str(servers.gpu_memory_utilization),
        "--tensor-parallel-size", str(servers.gpus_each),
    ]  # fmt: skip
    container = _container(
        cluster, name="server", image=cluster.server_container, command=command, gpus=servers.gpus_each
    )
    container["readinessProbe"] = {"httpGet": {"path": "/health", "port": _PORT}, "periodSeconds": 5}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": name, "namespace": cluster.namespace},
        "spec": {
            "serviceName": name,
            "replicas": _num_servers(request),
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": _pod(cluster, container)},
        },
    }


def _container(
    cluster: KubernetesConfig, *, name: str, image: str, command: list[str], gpus: int, has_network: bool = False
) -> dict[str, Any]:
    resources: dict[str, Any] = {"nvidia.com/gpu": gpus} if gpus else {}
    if has_network and cluster.ib_count != "0":
        resources[cluster.ib_resource_name] = cluster.ib_count
    mounts = [{"name": volume["name"], "mountPath": path} for volume, path in _volumes(cluster)]
    return {
        "name": name,
        "image": image,
        "command": command,
        "workingDir": cluster.workdir,
        "env": [{"name": key, "value": value} for key, value in cluster.env_vars.items()],
        "envFrom": [{"secretRef": {"name": secret}} for secret in cluster.secrets],
        "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}},
        "resources": {"requests": resources, "limits": resources},
        "volumeMounts": mounts,
    }


def _pod(cluster: KubernetesConfig, container: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = {"containers": [container], "volumes": [volume for volume, _ in _volumes(cluster)]}
    if cluster.pull_secret:
        pod["imagePullSecrets"] = [{"name": cluster.pull_secret}]
    if cluster.dns_policy:
        pod["dnsPolicy"] = cluster.dns_policy
    return pod


def _volumes(cluster: KubernetesConfig) -> list[tuple[dict[str, Any], str]]:
    """Every volume with the path that it is mounted under."""
    memory = {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": cluster.shm_size}}
    found, volumes = [(memory, "/dev/shm")], cluster.volumes
    if volumes.nfs.server and volumes.nfs.path:
        found.append(({"name": "nfs", "nfs": volumes.nfs.model_dump()}, volumes.nfs.path))
    if volumes.hostPath.path:
        found.append(({"name": "host", "hostPath": volumes.hostPath.model_dump()}, volumes.hostPath.path))
    claim = volumes.persistentVolumeClaim
    if claim.claimName and claim.mountPath:
        found.append(({"name": "claim", "persistentVolumeClaim": {"claimName": claim.claimName}}, claim.mountPath))
    return found


def _name(request: JobRequest) -> str:
    """A DNS label: what Kubernetes calls things."""
    return re.sub(r"[^a-z0-9-]+", "-", request.name.lower()).strip("-")[:50]
