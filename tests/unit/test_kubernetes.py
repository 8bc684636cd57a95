"""Manifests: which pods, how many GPUs, who waits for whom."""

from __future__ import annotations

import pytest
import yaml

from nemo_axpo.cli import main
from nemo_axpo.config.load import config_directory


def documents(capsys, *words, cluster="k8s"):
    assert main(["submit", "--kubernetes", cluster, "--name", "axpo_8B", "--", *words]) == 0
    return {document["kind"]: document for document in yaml.safe_load_all(capsys.readouterr().out)}


TRAIN = ("train", "--config-name", "recipes/axpo_32b", "model.path=/nfs/sft", "--output-dir", "/nfs/run")


def test_trainer_and_servers(capsys):
    found = documents(capsys, *TRAIN)
    assert set(found) == {"Service", "StatefulSet", "PyTorchJob"}
    worker = found["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]["Worker"]
    trainer = worker["template"]["spec"]["containers"][0]
    assert worker["replicas"] == 4 and trainer["resources"]["limits"] == {
        "nvidia.com/gpu": 8,
        "nvidia.com/hostdev": "8",
    }
    assert "--nproc-per-node=8" in trainer["command"] and "--rdzv-endpoint=axpo-8b-worker-0:29500" in trainer["command"]
    assert "--resume" in trainer["command"]
    servers = found["StatefulSet"]["spec"]
    assert servers["replicas"] == 8
    assert servers["template"]["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 2}


def test_the_trainer_waits_for_the_servers_it_is_given(capsys):
    found = documents(capsys, *TRAIN)
    pod = found["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    urls = [f"http://axpo-8b-servers-{i}.axpo-8b-servers:8000" for i in range(8)]
    assert pod["initContainers"][0]["command"][-8:] == urls
    assert f"engine.servers=[{','.join(urls)}]" in pod["containers"][0]["command"]
    service, servers = found["Service"], found["StatefulSet"]
    assert service["metadata"]["name"] == servers["spec"]["serviceName"] == "axpo-8b-servers"
    assert service["spec"]["selector"] == servers["spec"]["template"]["metadata"]["labels"]


def test_volumes_are_mounted_where_they_lie(capsys, tmp_path):
    text = (config_directory() / "kubernetes" / "k8s.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("server: null\n    path: null", "server: nas\n    path: /nfs"))
    job = documents(capsys, *TRAIN, cluster=str(tmp_path / "mine.yaml"))["PyTorchJob"]
    pod = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    assert {"name": "nfs", "nfs": {"server": "nas", "path": "/nfs"}} in pod["volumes"]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts == {"dshm": "/dev/shm", "nfs": "/nfs"}


def test_a_warm_start_has_no_servers(capsys):
    found = documents(capsys, "sft", "--config-name", "recipes/sft_8b", "model.path=/nfs/base")
    assert set(found) == {"PyTorchJob"}


@pytest.mark.parametrize(
    ("text", "expected"), [("containr: x\n", "must fit its schema"), (None, "is a YAML file or k8s")]
)
def test_wrong_files(capsys, tmp_path, text, expected):
    path = tmp_path / "k.yaml"
    if text:
        path.write_text(text)
    assert main(["submit", "--kubernetes", str(path), "--", *TRAIN]) == 2
    assert expected in capsys.readouterr().err
