"""Manifests: which pods, how many GPUs, who waits for whom, what is refused."""

from __future__ import annotations

import pytest
import yaml
from golden_manifests import GOLDEN, NFS, golden_texts

from nemo_axpo.cli import main

TRAIN = ("train", "--config-name", "recipes/axpo_32b", "model.path=/nfs/sft", "--output-dir", "/nfs/run")


def documents(capsys, *words, settings=NFS):
    assert main(["submit", "--kubernetes", "k8s", *settings, "--name", "axpo-32b", "--", *words]) == 0
    return {document["kind"]: document for document in yaml.safe_load_all(capsys.readouterr().out)}


def refusal(capsys, *words, settings=NFS):
    assert main(["submit", "--kubernetes", "k8s", *settings, "--", *words]) == 2
    return capsys.readouterr().err


def worker_of(found):
    return found["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]["Worker"]


def test_golden_files():
    for name, text in golden_texts().items():
        assert (GOLDEN / name).read_text(encoding="utf-8") == text, f"python tests/unit/golden_manifests.py: {name}"


def test_trainer_and_servers(capsys):
    found = documents(capsys, *TRAIN)
    assert set(found) == {"Service", "NetworkPolicy", "StatefulSet", "PyTorchJob"}
    worker = worker_of(found)
    trainer = worker["template"]["spec"]["containers"][0]
    assert worker["replicas"] == 4
    assert trainer["resources"]["limits"] == {"nvidia.com/gpu": 8, "nvidia.com/hostdev": "8"}
    assert "--nproc-per-node=8" in trainer["command"] and "--rdzv-endpoint=axpo-32b-worker-0:29500" in trainer["command"]
    servers = found["StatefulSet"]["spec"]
    assert servers["replicas"] == 8
    # Two of a node's eight GPUs come with two of its eight adapters.
    limits = servers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"nvidia.com/gpu": 2, "nvidia.com/hostdev": "2"}


def test_the_trainer_waits_for_the_servers_it_is_given(capsys):
    found = documents(capsys, *TRAIN)
    pod = worker_of(found)["template"]["spec"]
    urls = [f"http://axpo-32b-servers-{i}.axpo-32b-servers:8000" for i in range(8)]
    assert pod["initContainers"][0]["command"][-8:] == urls
    assert f"engine.servers=[{','.join(urls)}]" in pod["containers"][0]["command"]
    service, servers = found["Service"], found["StatefulSet"]
    assert service["metadata"]["name"] == servers["spec"]["serviceName"] == "axpo-32b-servers"
    assert service["spec"]["selector"] == servers["spec"]["template"]["metadata"]["labels"]


def test_only_the_trainer_and_other_servers_reach_a_server(capsys):
    found = documents(capsys, *TRAIN)
    wall = found["NetworkPolicy"]["spec"]
    assert wall["podSelector"]["matchLabels"] == found["StatefulSet"]["spec"]["selector"]["matchLabels"]
    (rule,) = wall["ingress"]
    allowed = [peer["podSelector"]["matchLabels"] for peer in rule["from"]]
    assert allowed == [worker_of(found)["template"]["metadata"]["labels"], wall["podSelector"]["matchLabels"]]


def test_a_failed_trainer_goes_on_a_few_times(capsys):
    found = documents(capsys, *TRAIN, settings=[*NFS, "--set", "max_restarts=2"])
    worker = worker_of(found)
    assert worker["restartPolicy"] == "OnFailure" and "restartPolicy" not in worker["template"]["spec"]
    assert "--resume" in worker["template"]["spec"]["containers"][0]["command"]
    # The operator adds up the restarts of all pods, and all four fail together: 8 are two failures, the ninth is the third.
    assert found["PyTorchJob"]["spec"]["runPolicy"] == {"cleanPodPolicy": "Running", "backoffLimit": 9}


def test_keys_reach_the_trainer_alone_and_no_pod_the_cluster_api(capsys):
    found = documents(capsys, *TRAIN, settings=[*NFS, "--set", "secrets=[keys]"])
    trainer, servers = worker_of(found)["template"]["spec"], found["StatefulSet"]["spec"]["template"]["spec"]
    assert trainer["containers"][0]["envFrom"] == [{"secretRef": {"name": "keys"}}]
    others = [*trainer["initContainers"], *servers["containers"]]
    assert not [container for container in others if "envFrom" in container]
    assert trainer["automountServiceAccountToken"] is servers["automountServiceAccountToken"] is False


def test_requests(capsys):
    settings = [*NFS, "--set", "trainer_requests.memory=1Ti", "--set", "trainer_requests.cpu=96"]
    resources = worker_of(documents(capsys, *TRAIN, settings=settings))["template"]["spec"]["containers"][0]["resources"]
    devices = {"nvidia.com/gpu": 8, "nvidia.com/hostdev": "8"}
    assert resources == {"requests": {"cpu": "96", "memory": "1Ti", **devices}, "limits": devices}


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("Unconfined", {"type": "Unconfined"}),
        ("profiles/axpo.json", {"type": "Localhost", "localhostProfile": "profiles/axpo.json"}),
    ],
)
def test_the_sandbox_of_tools_may_need_another_profile(capsys, profile, expected):
    found = documents(capsys, *TRAIN, settings=[*NFS, "--set", f"seccomp_profile={profile}"])
    trainer = worker_of(found)["template"]["spec"]["containers"][0]["securityContext"]
    assert trainer == {"seccompProfile": expected, "capabilities": {"add": ["IPC_LOCK"]}}
    server = found["StatefulSet"]["spec"]["template"]["spec"]["containers"][0]["securityContext"]
    assert server == {"capabilities": {"add": ["IPC_LOCK"]}}


def test_shared_memory_lives_in_memory(capsys):
    pod = worker_of(documents(capsys, *TRAIN, settings=[*NFS, "--set", "shm_size=64Gi"]))["template"]["spec"]
    assert pod["volumes"][0] == {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}}
    assert pod["containers"][0]["volumeMounts"][0] == {"name": "dshm", "mountPath": "/dev/shm"}


def test_a_trainer_of_one_node_needs_no_adapters(capsys):
    found = documents(capsys, "train", "--config-name", "recipes/axpo_8b", "model.path=/nfs/a", "--output-dir", "/nfs/b")
    container = worker_of(found)["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8} and "securityContext" not in container


def test_a_warm_start_has_no_servers(capsys):
    words = ("sft", "--config-name", "recipes/sft_8b", "model.path=/nfs/base", "--output-dir", "/nfs/run")
    assert set(documents(capsys, *words)) == {"PyTorchJob"}


def test_running_servers_are_used_as_they_are(capsys):
    found = documents(capsys, *TRAIN, "engine.servers=[http://h:8000]")
    assert set(found) == {"PyTorchJob"}
    pod = worker_of(found)["template"]["spec"]
    assert "engine.servers=[http://h:8000]" in pod["containers"][0]["command"] and "initContainers" not in pod


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("job.max_time=0:04:00:00", "not started again after job.max_time"),
        ("job.tool_servers.num_nodes=1", "tools run beside the trainer"),
    ],
)
def test_what_kubernetes_would_not_do_is_refused(capsys, word, expected):
    assert expected in refusal(capsys, *TRAIN, word)


def test_results_must_outlive_their_pod(capsys):
    assert "the cluster file names none" in refusal(capsys, *TRAIN, settings=())
    elsewhere = ("--set", "volumes.nfs.server=nas", "--set", "volumes.nfs.path=/nfs2")
    message = refusal(capsys, *TRAIN, settings=elsewhere)
    assert "lies on a volume of the pods (/nfs2); got /nfs/run" in message


def test_a_command_without_a_trainer_is_no_manifest(capsys):
    assert "a manifest is of a job with a trainer; got table" in refusal(capsys, "table", "/nfs/runs", "--output", "/nfs/t")


def test_there_is_no_queue_to_depend_on(capsys):
    words = ["submit", "--kubernetes", "k8s", *NFS, "--dependency", "afterok:1", "--", *TRAIN]
    assert main(words) == 2
    assert "kubectl wait" in capsys.readouterr().err
