"""``cluster=k8s`` of the real launcher: its chart linted and rendered by Helm's library, every object under its schema."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from nemo_axpo.aligner.kubernetes_stage import stage_cluster, stage_job
from nemo_axpo.cli import main
from nemo_axpo.config.load import load_config
from nemo_axpo.launcher.kubernetes import documents
from nemo_axpo.launcher.kubernetes_cluster import load_kubernetes
from nemo_axpo.launcher.nemo_keys import load_nemo_run

ROOT = Path(__file__).parents[2]
KUBERNETES = "1.30"
"""Of the schemas: a version that clusters run."""
IMAGES = ("container=registry/nemo_axpo-trainer:1", "+cluster.server_container=registry/nemo_axpo-server:1")


def launch(launcher, tmp_path, *arguments, size="8b", environment=None):
    command = [sys.executable, ROOT / "launcher_scripts" / "main.py", f"launcher_scripts_path={launcher}",
               "stages=[axpo]", f"axpo=qwen3_vl/{size}", "cluster=k8s", "cluster_type=k8s", *IMAGES,
               "cluster.nfs_server=nas", f"cluster.nfs_path={tmp_path}", f"base_results_dir={tmp_path}",
               "axpo.pretrained_checkpoint.restore_from_path=/models/sft", *arguments]  # fmt: skip
    variables = {**os.environ, **(environment or {"NEMO_LAUNCHER_DEBUG": "1"})}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=120)


def chart_of(launcher, tmp_path, *arguments, size="8b"):
    done = launch(launcher, tmp_path, *arguments, size=size)
    assert done.returncode == 0, done.stderr
    return tmp_path / f"axpo_qwen3_vl_{size}" / "k8s_template"


def rendered(chart, *, values=None, release="axpo-qwen3-vl-8b"):
    import helm_python

    with helm_python.Chart.load(chart) as loaded:
        (text,) = loaded.render(values, name=release, namespace="team").values()
    return {part["kind"]: part for part in yaml.safe_load_all(text)}


def check_schemas(found: Mapping[str, dict]):
    """Every object under Kubernetes' schemas, without unknown keys; Kubeflow's around its pods by Kubeflow's own models."""
    import kubernetes_validate
    from kubeflow import training

    for kind, part in found.items():
        if kind != "PyTorchJob":
            kubernetes_validate.validate(part, KUBERNETES, strict=True)
    job = found["PyTorchJob"]
    assert set(job) <= set(training.KubeflowOrgV1PyTorchJob.attribute_map.values())
    assert set(job["spec"]) <= set(training.KubeflowOrgV1PyTorchJobSpec.attribute_map.values())
    assert set(job["spec"]["runPolicy"]) <= set(training.KubeflowOrgV1RunPolicy.attribute_map.values())
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert set(worker) <= set(training.KubeflowOrgV1ReplicaSpec.attribute_map.values())
    pods = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": job["metadata"], "template": worker["template"]}
    kubernetes_validate.validate(pods, KUBERNETES, strict=True)
    names = [container["name"] for container in worker["template"]["spec"]["containers"]]
    assert names == ["pytorch"], "the operator looks for a container of this name"


@pytest.mark.launcher
@pytest.mark.parametrize(("size", "nodes", "servers"), [("2b", 1, 4), ("4b", 1, 4), ("8b", 1, 8), ("32b", 4, 8)])
def test_a_stage_becomes_a_chart(launcher, tmp_path, size, nodes, servers):
    import helm_python

    chart = chart_of(launcher, tmp_path, "+cluster.secrets=[keys]", "env_vars.NCCL_DEBUG=INFO", size=size)
    report = helm_python.lint(chart, strict=True)
    assert report["errors"] == [] and [note["error"] for note in report["messages"]] == ["icon is recommended"]
    found = rendered(chart, release=f"axpo-qwen3-vl-{size}")
    check_schemas(found)
    worker = found["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert worker["replicas"] == nodes and found["StatefulSet"]["spec"]["replicas"] == servers
    # The pod's file is the recipe.
    mounted = tmp_path / "config.yaml"
    mounted.write_text(found["ConfigMap"]["data"]["config.yaml"])
    run, recipe = load_nemo_run(mounted), load_config(config_name=f"recipes/axpo_{size}")
    assert (run.config.job, run.config.rollout, run.config.algorithm) == (recipe.job, recipe.rollout, recipe.algorithm)
    assert run.config.output_dir == str(tmp_path / f"axpo_qwen3_vl_{size}" / "results") and run.resume


@pytest.mark.launcher
def test_what_helm_renders_is_what_the_builder_of_manifests_says(launcher, tmp_path):
    chart = chart_of(launcher, tmp_path, "+cluster.secrets=[keys]", "cluster.dns_policy=ClusterFirst", size="32b")
    found = rendered(chart, release="axpo-qwen3-vl-32b")
    settings = yaml.safe_load((chart / "values.yaml").read_text())
    container, env_vars = settings.pop("container"), settings.pop("env_vars")
    (config_file,) = (chart / "config").iterdir()
    job = stage_job(config_file, name="axpo_qwen3_vl_32b", environment={"CUDA_DEVICE_MAX_CONNECTIONS": "1"})
    expected = documents(job, stage_cluster(settings, container=container, env_vars=env_vars))
    assert list(found.values()) == expected


@pytest.mark.launcher
def test_another_value_takes_effect(launcher, tmp_path):
    chart = chart_of(launcher, tmp_path)
    found = rendered(chart, values={"shm_size": "64Gi", "container": "registry/other:2"})
    check_schemas(found)
    pod = found["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    assert pod["volumes"][0]["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Gi"}
    assert pod["containers"][0]["image"] == pod["initContainers"][0]["image"] == "registry/other:2"


@pytest.mark.launcher
def test_the_launcher_calls_helm_with_the_chart(launcher, tmp_path):
    """Without the debug variable the launcher installs the chart: a helm of this test notes what it is asked for."""
    binaries, called = tmp_path / "bin", tmp_path / "called"
    binaries.mkdir()
    (binaries / "helm").write_text(f'#!/bin/sh\necho "$@" > {called}\n')
    (binaries / "helm").chmod(0o755)
    environment = {"NEMO_LAUNCHER_DEBUG": "0", "PATH": f"{binaries}:{os.environ['PATH']}"}
    done = launch(launcher, tmp_path, "cluster.namespace=team", environment=environment)
    assert done.returncode == 0, done.stderr
    words = called.read_text().split()
    assert words[0] == "install" and words[-4:-2] == ["--namespace", "team"]
    assert words[-2:] == ["axpo-qwen3-vl-8b", str(tmp_path / "axpo_qwen3_vl_8b" / "k8s_template")]


@pytest.mark.launcher
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["cluster_type=bcm"], "cluster=k8s goes with cluster_type=k8s"),
        (["container=nvcr.io/nvidia/nemo:24.09"], "the container holds nemo_axpo"),
        (["cluster.nfs_server=null", "cluster.nfs_path=null"], "lies on a volume of the pods"),
        (["wandb_api_key_file=/key"], "keys come from Secrets"),
        (["axpo.run.name=Axpo"], "a release begins with a letter"),
        (["axpo.trainer.max_time=00:04:00:00"], "not started again after job.max_time"),
        (["+cluster.secret=[keys]"], "did you mean secrets"),
    ],
)
def test_what_is_refused_before_anything_is_written(launcher, tmp_path, arguments, expected):
    done = launch(launcher, tmp_path, *arguments)
    assert done.returncode != 0 and expected in done.stderr
    assert not list(tmp_path.rglob("k8s_template"))


@pytest.mark.launcher
def test_the_launchers_cluster_file_serves_submit_too(launcher):
    path = launcher / "conf" / "cluster" / "k8s.yaml"
    cluster = load_kubernetes(str(path), changes=["container=image", "nfs_server=nas", "nfs_path=/nfs"])
    assert cluster.mounts()[1][0] == {"name": "nfs", "nfs": {"server": "nas", "path": "/nfs"}}


@pytest.mark.launcher
@pytest.mark.parametrize("recipe", sorted(path.stem for path in (ROOT / "conf" / "recipes").glob("*.yaml")))
def test_every_recipes_manifest_is_one_that_kubernetes_takes(capsys, recipe):
    cluster = ["--kubernetes", "k8s", "--set", "volumes.nfs.server=nas", "--set", "volumes.nfs.path=/nfs"]
    command = ["sft" if recipe.startswith("sft") else "train"]
    words = ["--config-name", f"recipes/{recipe}", "--output-dir", f"/nfs/runs/{recipe}"]
    if recipe.startswith("eval"):
        command = ["eval", "--checkpoint", "/nfs/policy", "--benchmark", "vstar=/nfs/vstar"]
    else:
        words.append("model.path=/nfs/policy")
    assert main(["submit", *cluster, "--", *command, *words]) == 0
    check_schemas({part["kind"]: part for part in yaml.safe_load_all(capsys.readouterr().out)})
