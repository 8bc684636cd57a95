"""The chart of a launcher's stage: one builder with the manifest, our entry script on the composed file, nothing secret."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import yaml
from golden_manifests import LAUNCHER_CLUSTER, stage_file
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from nemo_axpo.aligner.kubernetes_stage import check_stage, stage_cluster, stage_job
from nemo_axpo.errors import ConfigError
from nemo_axpo.launcher.helm_chart import chart_files, write_chart
from nemo_axpo.launcher.kubernetes import documents
from nemo_axpo.launcher.nemo_keys import run_from_nemo
from nemo_axpo.launcher.resolvers import register_resolvers

IMAGE = "registry/nemo_axpo-trainer:1"


def cluster_of(container=IMAGE, env_vars=(), **keys):
    return stage_cluster({**LAUNCHER_CLUSTER, **keys}, container=container, env_vars=dict(env_vars))


def job_of(tmp_path, *, size="8b", name="axpo-8b", changes=()):
    path = stage_file(tmp_path, size=size)
    stage = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(changes)))
    path.write_text(OmegaConf.to_yaml(stage), encoding="utf-8")
    return stage_job(path, name=name, environment={}), path


def at(values, expression):
    """What ``.Values.a.b`` or ``(index .Values.a "b")`` is."""
    indexed = re.fullmatch(r'\(index (\S+) "?(\w+)"?\)', expression)
    if indexed:
        found = at(values, indexed[1])
        return found[int(indexed[2])] if isinstance(found, list) else found[indexed[2]]
    for key in expression.removeprefix(".Values.").split("."):
        values = values[key]
    return values


def test_every_value_of_the_template_is_a_key_of_the_values_and_the_word_of_the_manifest(tmp_path):
    job, path = job_of(tmp_path, size="32b")
    cluster = cluster_of(env_vars={"A": 1}, secrets=["keys"], dns_policy="ClusterFirst", ib_network_annotation="a,b",
                         trainer_requests={"memory": "1Ti"})  # fmt: skip
    files = chart_files(job, cluster, config_name=path.name)
    values = yaml.safe_load(files["values.yaml"])
    used = set()

    def word(match):
        used.add(match[1])
        return f'"{at(values, match[1])}"'

    text = re.sub(r"\{\{ (\(?[^|{}]*\.Values[^|{}]+?) \| quote \}\}", word, files["templates/axpo.yaml"])
    text = text.replace("{{ .Release.Name }}", job.name)
    text = text.replace(f'{{{{ .Files.Get "config/{path.name}" | toJson }}}}', "STAGE")
    assert "{{" not in text
    expected = documents(replace(job, stage="STAGE"), cluster)
    assert list(yaml.safe_load_all(text)) == yaml.safe_load(yaml.safe_dump(expected))
    for key in ("container", "shm_size", "pull_secret", "dns_policy", "ib_resource_name", "ib_count", "volumes.nfs.path",
                "ib_network_annotation", "trainer_requests.memory", "workdir"):  # fmt: skip
        assert f".Values.{key}" in used
    assert {'(index .Values.env_vars "A")', "(index .Values.secrets 0)"} < used


def test_the_trainer_runs_our_entry_script_on_the_stage_with_the_servers_of_the_chart(tmp_path):
    job, path = job_of(tmp_path)
    write_chart(job, cluster_of(), folder=tmp_path / "chart", config_file=path)
    saved = tmp_path / "chart" / "config" / path.name
    assert saved.read_text() == path.read_text()
    (trainer,) = (part for part in documents(job, cluster_of()) if part["kind"] == "PyTorchJob")
    command = trainer["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["command"]
    words = command[command.index("-m") :]
    assert words[:4] == ["-m", "nemo_axpo.aligner.train_qwen3_vl_axpo_actor", "--config-path=/config",
                         "--config-name=config.yaml"]  # fmt: skip
    # What Hydra makes of them, as in the pod.
    register_resolvers()
    (tmp_path / "config").mkdir()
    resolved = OmegaConf.create({"base_results_dir": "/nfs", "axpo": OmegaConf.load(path)})
    values = OmegaConf.to_container(resolved, resolve=True)["axpo"]
    (tmp_path / "config" / "config.yaml").write_text(yaml.safe_dump(values))
    with initialize_config_dir(str(tmp_path / "config"), version_base="1.2"):
        stage = compose(config_name="config.yaml", overrides=words[4:])
    config = run_from_nemo(OmegaConf.to_container(stage)).config
    assert config.engine.servers == tuple(f"http://axpo-8b-servers-{i}.axpo-8b-servers:8000" for i in range(8))
    assert config.model.path == "/nfs/sft" and config.job.gpus_per_node == 8


def test_keys_that_the_launcher_adds_on_kubernetes_are_let_through(tmp_path):
    added = ["data_dir=/d", "cluster_type=k8s", "launcher_scripts_path=/l", "data_config=axpo"]
    assert job_of(tmp_path, changes=added)[0].num_servers == 8


def test_running_servers_take_the_place_of_the_charts(tmp_path):
    job, _ = job_of(tmp_path, changes=["model.axpo.engine.servers=[http://h:8000]"])
    assert [part["kind"] for part in documents(job, cluster_of())] == ["ConfigMap", "PyTorchJob"]


def test_a_stage_that_does_not_resume_is_not_started_again(tmp_path):
    job, _ = job_of(tmp_path, changes=["exp_manager.resume_if_exists=false"])
    trainer = documents(job, cluster_of())[-1]["spec"]
    assert trainer["pytorchReplicaSpecs"]["Worker"]["restartPolicy"] == "Never"
    assert "backoffLimit" not in trainer["runPolicy"]


def test_the_launchers_name_of_the_release_must_fit(tmp_path):
    job, path = job_of(tmp_path, name="axpo_" + 40 * "x")
    assert job.name == "axpo-" + 40 * "x"
    with pytest.raises(ConfigError, match="at most 44 small letters, digits and hyphens; got axpo-x"):
        write_chart(job, cluster_of(), folder=tmp_path / "chart", config_file=path)
    assert not (tmp_path / "chart").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["pretrained_checkpoint.restore_from_path=null"], "a job names its model"),
        (["trainer.axpo.trt_llm.enable=true"], "a job starts servers of vLLM"),
        (["model.axpo.job.servers.per_node=0"], "needs generation servers"),
        (["trainer.devices=6"], "tensor"),
    ],
)
def test_stages_that_cannot_run(tmp_path, changes, expected):
    with pytest.raises(ConfigError, match=expected):
        job_of(tmp_path, changes=changes)


def test_an_image_without_this_package(tmp_path):
    with pytest.raises(ConfigError, match="the container holds nemo_axpo; got nvcr.io/nvidia/nemo:24.09"):
        cluster_of(container="nvcr.io/nvidia/nemo:24.09")
    assert cluster_of(container="nvcr.io/nvidia/nemo:26.02", workdir="/nfs/nemo_axpo").workdir == "/nfs/nemo_axpo"


def test_a_key_file_is_not_copied_into_a_chart(tmp_path):
    job, path = job_of(tmp_path, changes=["exp_manager.explicit_log_dir=/nfs/run"])
    check_stage(job, cluster_of(), key_file=None)
    with pytest.raises(ConfigError, match="keys come from Secrets"):
        check_stage(job, cluster_of(), key_file=str(path))


def test_results_beside_the_volumes_are_refused(tmp_path):
    job, _ = job_of(tmp_path, changes=["exp_manager.explicit_log_dir=/home/run"])
    with pytest.raises(ConfigError, match="explicit_log_dir lies on a volume"):
        check_stage(job, cluster_of(), key_file=None)
