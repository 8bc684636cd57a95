"""The stage ``axpo`` of the NeMo launcher on Kubernetes: what the launcher knows as a job and a cluster of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_axpo.config.checks import config_problems
from nemo_axpo.errors import ConfigError, rule_message
from nemo_axpo.launcher.kubernetes import CONFIG_DIRECTORY, CONFIG_NAME, KubernetesJob
from nemo_axpo.launcher.kubernetes_cluster import KubernetesConfig, check_on_a_volume, kubernetes_config
from nemo_axpo.launcher.nemo_keys import load_nemo_run
from nemo_axpo.launcher.submission import server_problems

ENTRY_MODULE = "nemo_axpo.aligner.train_qwen3_vl_axpo_actor"
_NEMO_IMAGE = "nvcr.io/nvidia/nemo:"
_SERVERS_KEY = "++model.axpo.engine.servers"


def release_name(name: str) -> str:
    """What the launcher calls the Helm release of a job."""
    return name.replace("_", "-")


def stage_job(config_file: Path, *, name: str, environment: Mapping[str, str]) -> KubernetesJob:
    """The job of a stage's saved file. ConfigError for a config that cannot run on the ranks and servers it asks for."""
    run = load_nemo_run(config_file)
    config = run.config
    problems = [*config_problems(config, world_size=config.job.world_size or 1), *server_problems(config)]
    if config.model.path is None:
        cure = "axpo.pretrained_checkpoint.restore_from_path=DIR, on a volume of the pods"
        problems.append(rule_message("a job names its model", got="restore_from_path: null", cure=cure))
    if problems:
        raise ConfigError("\n".join(problems))
    program = ("-m", ENTRY_MODULE, f"--config-path={CONFIG_DIRECTORY}", f"--config-name={CONFIG_NAME}")
    text = config_file.read_text(encoding="utf-8")
    return KubernetesJob(release_name(name), program, config, servers_key=_SERVERS_KEY, stage=text,
                         environment=environment, is_resumable=run.resume)  # fmt: skip


def stage_cluster(settings: Mapping[str, Any], *, container: str, env_vars: Mapping[str, Any]) -> KubernetesConfig:
    """The cluster that the launcher's sections ``cluster``, ``container`` and ``env_vars`` describe. ConfigError for keys
    that are unknown, and for an image without this package."""
    words = {name: str(value) for name, value in env_vars.items() if value is not None}
    cluster = kubernetes_config({**settings, "container": container, "env_vars": words}, source="cluster=k8s")
    if container.startswith(_NEMO_IMAGE) and cluster.workdir == KubernetesConfig.model_fields["workdir"].default:
        rule = "the container holds nemo_axpo"
        cure = "container=REGISTRY/nemo_axpo-trainer:TAG (containers/), or +cluster.workdir=CHECKOUT on a volume"
        raise ConfigError(rule_message(rule, got=container, cure=cure))
    return cluster


def check_stage(job: KubernetesJob, cluster: KubernetesConfig, *, key_file: str | None) -> None:
    """ConfigError for results that would be lost with their pod, and for a key that would stand in the chart."""
    check_on_a_volume(job.config.output_dir, cluster, what="exp_manager.explicit_log_dir")
    if key_file is not None:
        rule = "keys come from Secrets of the cluster, not out of a chart"
        cure = ("wandb_api_key_file=null +cluster.secrets=[NAME], after kubectl create secret generic NAME "
                "--from-literal=WANDB_API_KEY=...")  # fmt: skip
        raise ConfigError(rule_message(rule, got=f"wandb_api_key_file: {key_file}", cure=cure))
