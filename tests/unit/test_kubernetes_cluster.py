"""The cluster's file: volumes, adapters, and what does not fit."""

from __future__ import annotations

import pytest
from golden_manifests import LAUNCHER_CLUSTER

from nemo_axpo.errors import ConfigError
from nemo_axpo.launcher.kubernetes_cluster import (
    KubernetesConfig,
    check_on_a_volume,
    kubernetes_config,
    load_kubernetes,
)


def mounted(**keys):
    cluster = kubernetes_config({"container": "image", **keys}, source="test")
    return {volume["name"]: (volume, mount) for volume, mount in cluster.mounts()}


def test_the_launchers_file_is_taken_as_it_is():
    cluster = kubernetes_config({**LAUNCHER_CLUSTER, "container": "image"}, source="test")
    volume, mount = cluster.mounts()[1]
    assert volume == {"name": "nfs", "nfs": {"server": "nas", "path": "/nfs"}}
    assert mount == {"name": "nfs", "mountPath": "/nfs"} and len(cluster.mounts()) == 2


def test_older_names_of_the_nfs_server():
    assert mounted(nfs_server="nas", nfs_path="/nfs")["nfs"][0]["nfs"] == {"server": "nas", "path": "/nfs"}


def test_a_directory_of_the_nodes():
    volume, mount = mounted(volumes={"hostPath": {"path": "/raid"}})["host"]
    assert volume["hostPath"] == {"path": "/raid", "type": "Directory"} and mount["mountPath"] == "/raid"


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ({"mountPath": "/data"}, {"name": "claim", "mountPath": "/data"}),
        ({"subPath": "team/a"}, {"name": "claim", "mountPath": "/team/a", "subPath": "team/a"}),
        ({"subPath": "a", "mountPath": "/data"}, {"name": "claim", "mountPath": "/data", "subPath": "a"}),
    ],
)
def test_a_claim(claim, expected):
    volume, mount = mounted(volumes={"persistentVolumeClaim": {"claimName": "models", **claim}})["claim"]
    assert volume["persistentVolumeClaim"] == {"claimName": "models"} and mount == expected


@pytest.mark.parametrize(
    ("keys", "share", "expected"),
    [
        ({"ib_count": 8}, 0.25, {"nvidia.com/hostdev": "2"}),
        ({"ib_count": "4"}, 0.125, {"nvidia.com/hostdev": "1"}),  # half an adapter is one
        ({"ib_count": "0"}, 0.25, {}),
        ({"server_ib_count": "0"}, 0.25, {}),
        ({"ib_resource_name": ["a", "b"], "ib_count": ["8", "4"]}, 0.5, {"a": "4", "b": "2"}),
        ({"ib_resource_name": ["a", "b"], "ib_count": [8, 4], "server_ib_count": [0, 1]}, 0.5, {"b": "1"}),
    ],
)
def test_adapters_of_a_server(keys, share, expected):
    assert KubernetesConfig.model_validate({"container": "image", **keys}).server_adapters(share=share) == expected


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"volumes": {"nfs": {"server": "nas"}}}, "an NFS volume has a server and a path"),
        ({"volumes": {"persistentVolumeClaim": {"claimName": "c"}}}, "a claim has a mountPath or a subPath"),
        ({"ib_resource_name": ["a", "b"]}, "ib_count has a number for every ib_resource_name"),
        ({"server_ib_count": ["1", "1"]}, "server_ib_count has a number"),
        ({"shm_sise": "1Gi"}, "unknown key shm_sise of a cluster; got '1Gi': did you mean shm_size"),
        ({"ib_count": "all"}, "ib_count"),
        ({"max_restarts": -1}, "max_restarts"),
    ],
)
def test_what_does_not_fit(keys, expected):
    with pytest.raises(ConfigError) as caught:
        kubernetes_config({"container": "image", **keys}, source="test")
    assert expected in str(caught.value) and str(caught.value).startswith("test: ")


def test_a_file_and_changes(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("container: image\nnfs_path: null\nvolumes: {nfs: {server: nas, path: '${nfs_path}'}}\n")
    assert load_kubernetes(str(path), changes=["nfs_path=/nfs", "ib_count=4"]).trainer_adapters() == {
        "nvidia.com/hostdev": "4"
    }
    with pytest.raises(ConfigError, match="must resolve"):
        load_kubernetes(str(path), changes=["dns_policy=${nothing}"])
    with pytest.raises(ConfigError, match="is a YAML file or k8s"):
        load_kubernetes(str(tmp_path / "none.yaml"))


def test_a_directory_beside_a_volume_is_not_on_it():
    cluster = kubernetes_config({**LAUNCHER_CLUSTER, "container": "image"}, source="test")
    check_on_a_volume("/nfs", cluster, what="it")
    check_on_a_volume("/nfs/runs/a", cluster, what="it")
    for path in ("/nfs2/run", "nfs/run", "/dev/shm/run"):
        with pytest.raises(ConfigError, match="it lies on a volume of the pods"):
            check_on_a_volume(path, cluster, what="it")
