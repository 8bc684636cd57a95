"""A job as Kubernetes takes it: a PyTorchJob of Kubeflow for the trainer, a StatefulSet for the generation servers.

One builder for ``nemo-axpo submit --kubernetes`` and for the chart of the NeMo launcher's stage (``helm_chart``). Written against
version 1.9 of Kubeflow's training operator; not yet applied to a cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from nemo_axpo.config.schema import Config
from nemo_axpo.errors import ConfigError, rule_message
from nemo_axpo.launcher.dns_names import job_name
from nemo_axpo.launcher.job_request import JobRequest
from nemo_axpo.launcher.kubernetes_cluster import KubernetesConfig, check_on_a_volume

CONFIG_DIRECTORY, CONFIG_NAME = "/config", "config.yaml"
"""Where a stage's file lies in the trainer's pods."""
_PORT = 8000
_RENDEZVOUS = 29_500


@dataclass(frozen=True)
class KubernetesJob:
    """A trainer, and generation servers where its config names none that run."""

    name: str
    """Of the PyTorchJob; the others are named after it."""
    program: tuple[str, ...]
    """Words after torchrun's own."""
    config: Config
    servers_key: str = "engine.servers"
    """What ``program`` calls the list of servers."""
    stage: str | None = None
    """Text of a stage's file, mounted as ``/config/config.yaml``."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Of the trainer alone."""
    is_resumable: bool = True
    """Whether a trainer that is started again goes on where it was."""

    @property
    def num_nodes(self) -> int:
        return self.config.job.num_nodes or 1

    @property
    def num_servers(self) -> int:
        """Pods of servers; 0 where the config names running ones."""
        servers = self.config.job.servers
        return 0 if self.config.engine.servers else servers.per_node * (servers.num_nodes or self.num_nodes)

    @property
    def has_network(self) -> bool:
        """Whether the trainer's ranks talk from node to node. Then servers get adapters too: NCCL's broadcast of weights
        needs the same kind of network at both ends."""
        return self.num_nodes > 1

    @property
    def server_urls(self) -> list[str]:
        """The addresses that the pods of the StatefulSet will have."""
        host = f"{self.name}-servers"
        return [f"http://{host}-{i}.{host}:{_PORT}" for i in range(self.num_servers)]


def manifest(request: JobRequest, cluster: KubernetesConfig) -> str:
    """YAML documents for ``kubectl apply``. ConfigError for what cannot run there, and for a command that has no trainer."""
    if request.is_plain:
        rule, cure = "a manifest is of a job with a trainer", "run it where its directories are"
        raise ConfigError(rule_message(rule, got=request.command[0], cure=cure))
    check_on_a_volume(request.run_dir, cluster, what="the run directory")
    name = job_name(request.name, run_dir=request.run_dir)
    job = KubernetesJob(name, ("-m", "nemo_axpo.cli", *request.command), request.config)
    return yaml_text(documents(job, cluster))


def documents(job: KubernetesJob, cluster: KubernetesConfig) -> list[dict[str, Any]]:
    """What is created, in this order. ConfigError for what Kubernetes would not do as the config says."""
    _check(job)
    found = [] if job.stage is None else [_config_map(job, cluster)]
    if job.num_servers:
        found += [_service(job, cluster), _wall(job, cluster), _servers(job, cluster)]
    return [*found, _trainer(job, cluster)]


class PlainDumper(yaml.SafeDumper):
    """Repeats equal parts instead of referring to them."""

    def ignore_aliases(self, data: Any) -> bool:
        """Never an anchor."""
        return True


def yaml_text(parts: Sequence[Mapping[str, Any]], *, dumper: type[yaml.SafeDumper] = PlainDumper) -> str:
    """YAML documents, a line each command word however long."""
    return yaml.dump_all(parts, Dumper=dumper, sort_keys=False, width=float("inf"), allow_unicode=True)


def _check(job: KubernetesJob) -> None:
    section = job.config.job
    problems = []
    if section.max_time is not None:
        rule = "a job without a queue is not started again after job.max_time"
        problems.append(rule_message(rule, got=section.max_time, cure="set it to null: Kubernetes has no time limit"))
    if section.tool_servers.num_nodes:
        rule = "on Kubernetes tools run beside the trainer, or on servers that run already (tools.servers)"
        got = f"job.tool_servers.num_nodes={section.tool_servers.num_nodes}"
        problems.append(rule_message(rule, got=got, cure="set it to 0"))
    if problems:
        raise ConfigError("\n".join(problems))


def _metadata(name: str, cluster: KubernetesConfig) -> dict[str, Any]:
    return {"name": name, **({"namespace": cluster.namespace} if cluster.namespace else {})}


def _config_map(job: KubernetesJob, cluster: KubernetesConfig) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(f"{job.name}-config", cluster),
        "data": {CONFIG_NAME: job.stage},
    }


def _trainer(job: KubernetesJob, cluster: KubernetesConfig) -> dict[str, Any]:
    section = job.config.job
    ranks = section.gpus_per_node if section.num_nodes else 1
    servers = [f"{job.servers_key}=[{','.join(job.server_urls)}]"] if job.num_servers else []
    command = ["torchrun", f"--nnodes={job.num_nodes}", "--rdzv-backend=c10d", f"--rdzv-id={job.name}",
               f"--rdzv-endpoint={job.name}-worker-0:{_RENDEZVOUS}", f"--nproc-per-node={ranks}",
               *job.program, *servers]  # fmt: skip
    adapters = cluster.trainer_adapters() if job.has_network else {}
    container = {
        **_container(cluster, name="pytorch", image=cluster.container, command=command,
                     environment={**cluster.env_vars, **job.environment}),
        "resources": _resources({"nvidia.com/gpu": job.config.trainer_gpus, **adapters},
                                **cluster.trainer_requests.model_dump()),
    }  # fmt: skip
    if cluster.seccomp_profile:
        container["securityContext"] = {"seccompProfile": _seccomp(cluster.seccomp_profile)}
    if cluster.secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in cluster.secrets]
    pod = _pod(cluster, container, adapters=adapters)
    if job.stage is not None:
        pod["volumes"].append({"name": "config", "configMap": {"name": f"{job.name}-config"}})
        container["volumeMounts"].append({"name": "config", "mountPath": CONFIG_DIRECTORY})
    if job.num_servers:
        pod["initContainers"] = [_waiting(job, cluster)]
    # One rank's failure ends them all; the operator adds up the restarts of all pods, and this sum is the end of the job.
    policy = {"cleanPodPolicy": "Running"}
    if job.is_resumable:
        policy["backoffLimit"] = cluster.max_restarts * job.num_nodes + 1
    worker = {
        "replicas": job.num_nodes,
        "restartPolicy": "OnFailure" if job.is_resumable else "Never",
        "template": {"metadata": _labels(f"{job.name}-trainer", cluster, adapters=adapters), "spec": pod},
    }
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": _metadata(job.name, cluster),
        "spec": {"runPolicy": policy, "pytorchReplicaSpecs": {"Worker": worker}},
    }


def _waiting(job: KubernetesJob, cluster: KubernetesConfig) -> dict[str, Any]:
    """Ends when every server answers; one that does not in time is waited for again."""
    timeout_s = str(60 * job.config.job.servers.start_timeout_min)
    command = ["python3", "-m", "nemo_axpo.launcher.wait_for", "--timeout-s", timeout_s, *job.server_urls]
    return {"name": "wait", "image": cluster.container, "command": command, "workingDir": cluster.workdir}


def _service(job: KubernetesJob, cluster: KubernetesConfig) -> dict[str, Any]:
    """Gives each server a name of its own."""
    name = f"{job.name}-servers"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(name, cluster),
        "spec": {"clusterIP": "None", "selector": {"app": name}, "ports": [{"port": _PORT}],
                 "publishNotReadyAddresses": True},
    }  # fmt: skip


def _wall(job: KubernetesJob, cluster: KubernetesConfig) -> dict[str, Any]:
    """Servers take weights from whoever reaches them: that is the trainer, and they themselves in a broadcast."""
    name = f"{job.name}-servers"
    peers = [{"podSelector": {"matchLabels": {"app": app}}} for app in (f"{job.name}-trainer", name)]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(name, cluster),
        "spec": {"podSelector": {"matchLabels": {"app": name}}, "policyTypes": ["Ingress"],
                 "ingress": [{"from": peers}]},
    }  # fmt: skip


def _servers(job: KubernetesJob, cluster: KubernetesConfig) -> dict[str, Any]:
    engine, servers, name = job.config.engine, job.config.job.servers, f"{job.name}-servers"
    command = [
        "python3", "-m", "nemo_axpo.engines.vllm_server.launch", "--host", "0.0.0.0", "--port", str(_PORT),
        "--checkpoint", str(job.config.model.path), "--dtype", engine.dtype,
        "--max-model-len", str(engine.max_model_len), "--max-num-seqs", str(servers.max_num_seqs),
        "--gpu-memory-utilization", str(servers.gpu_memory_utilization),
        "--tensor-parallel-size", str(servers.gpus_each),
    ]  # fmt: skip
    share = servers.gpus_each / job.config.job.gpus_per_node
    adapters = cluster.server_adapters(share=share) if job.has_network else {}
    container = {
        **_container(cluster, name="server", image=cluster.server_container or cluster.container, command=command,
                     environment=cluster.env_vars),
        "resources": _resources({"nvidia.com/gpu": servers.gpus_each, **adapters},
                                **cluster.server_requests.model_dump()),
        "readinessProbe": {"httpGet": {"path": "/health", "port": _PORT}, "periodSeconds": 5},
    }  # fmt: skip
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": _metadata(name, cluster),
        "spec": {
            "serviceName": name,
            "replicas": job.num_servers,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": _labels(name, cluster, adapters=adapters),
                "spec": _pod(cluster, container, adapters=adapters),
            },
        },
    }


def _container(
    cluster: KubernetesConfig, *, name: str, image: str, command: list[str], environment: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "name": name,
        "image": image,
        "command": command,
        "workingDir": cluster.workdir,
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "volumeMounts": [mount for _, mount in cluster.mounts()],
    }


def _resources(devices: Mapping[str, int | str], *, cpu: str | None, memory: str | None) -> dict[str, Any]:
    """Devices are requested and limited alike, as Kubernetes asks; CPUs and memory are requested only."""
    wanted = {name: count for name, count in devices.items() if count}
    requests = {**{name: count for name, count in (("cpu", cpu), ("memory", memory)) if count}, **wanted}
    return {**({"requests": requests} if requests else {}), **({"limits": wanted} if wanted else {})}


def _seccomp(profile: str) -> dict[str, str]:
    if profile in ("Unconfined", "RuntimeDefault"):
        return {"type": profile}
    return {"type": "Localhost", "localhostProfile": profile}


def _labels(app: str, cluster: KubernetesConfig, *, adapters: Mapping[str, str]) -> dict[str, Any]:
    networks = cluster.ib_network_annotation if adapters else ""
    annotations = {"annotations": {"k8s.v1.cni.cncf.io/networks": networks}} if networks else {}
    return {"labels": {"app": app}, **annotations}


def _pod(cluster: KubernetesConfig, container: dict[str, Any], *, adapters: Mapping[str, str]) -> dict[str, Any]:
    if adapters:  # RDMA pins memory
        container.setdefault("securityContext", {})["capabilities"] = {"add": ["IPC_LOCK"]}
    pod: dict[str, Any] = {
        # Models write code that tools run in these pods: no way from there to the cluster's API.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "containers": [container],
        "volumes": [volume for volume, _ in cluster.mounts()],
    }
    if cluster.pull_secret:
        pod["imagePullSecrets"] = [{"name": cluster.pull_secret}]
    if cluster.dns_policy:
        pod["dnsPolicy"] = cluster.dns_policy
    return pod
