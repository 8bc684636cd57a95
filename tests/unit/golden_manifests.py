"""What Kubernetes gets for a recipe, and the chart of a launcher's stage; run it to write the golden files anew and review
the difference:

python tests/unit/golden_manifests.py
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

from nemo_axpo.aligner.kubernetes_stage import stage_cluster, stage_job
from nemo_axpo.cli import main
from nemo_axpo.config.load import config_directory
from nemo_axpo.launcher.helm_chart import chart_files

GOLDEN = Path(__file__).parent / "golden" / "kubernetes"
RECIPES = ("axpo_2b", "axpo_32b", "eval_8b", "sft_8b")
STAGE = "8b"
NFS = ("--set", "volumes.nfs.server=nas", "--set", "volumes.nfs.path=/nfs")
LAUNCHER_CLUSTER = {
    "pull_secret": "ngc-registry",
    "shm_size": "512Gi",
    "volumes": {
        "nfs": {"server": "nas", "path": "/nfs"},
        "hostPath": {"path": None, "type": "Directory"},
        "persistentVolumeClaim": {"claimName": None, "subPath": None},
    },
    "nfs_server": "nas",
    "nfs_path": "/nfs",
    "ib_resource_name": "nvidia.com/hostdev",
    "ib_count": "8",
    "ib_network_annotation": "",
    "dns_policy": None,
    "namespace": "",
}
"""The launcher's conf/cluster/k8s.yaml with ``cluster.nfs_server=nas cluster.nfs_path=/nfs``."""


def manifest_of(recipe: str) -> str:
    """The manifest of a recipe on a cluster with little said about it."""
    words = ["submit", "--kubernetes", "k8s", *NFS, "--name", recipe.replace("_", "-"), "--"]
    name = f"recipes/{recipe}"
    if recipe.startswith("eval"):
        words += ["eval", "--checkpoint", "/nfs/policy", "--benchmark", "vstar=/nfs/vstar", "--config-name", name]
    else:
        words += ["sft" if recipe.startswith("sft") else "train", "--config-name", name, "model.path=/nfs/policy"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main([*words, "--output-dir", f"/nfs/runs/{recipe}"]) == 0
    return printed.getvalue()


def stage_file(directory: Path, *, size: str = STAGE) -> Path:
    """A stage with a model, as the launcher saves it."""
    path = directory / f"axpo_qwen3_vl_{size}_hydra.yaml"
    text = (config_directory() / "axpo" / "qwen3_vl" / f"{size}.yaml").read_text(encoding="utf-8")
    assert text.count("restore_from_path: null") == 1
    path.write_text(text.replace("restore_from_path: null", "restore_from_path: /nfs/sft"), encoding="utf-8")
    return path


def chart_of(size: str) -> dict[str, str]:
    """The chart of a launcher's stage, by file name."""
    own = {"server_container": "registry/nemo_axpo-server:1", "secrets": ["keys"]}
    env_vars = {"NCCL_DEBUG": None, "TRANSFORMERS_OFFLINE": 0}
    cluster = stage_cluster({**LAUNCHER_CLUSTER, **own}, container="registry/nemo_axpo-trainer:1", env_vars=env_vars)
    with tempfile.TemporaryDirectory() as directory:
        path = stage_file(Path(directory), size=size)
        job = stage_job(path, name=f"axpo_qwen3_vl_{size}", environment={"CUDA_DEVICE_MAX_CONNECTIONS": "1"})
    return chart_files(job, cluster, config_name=path.name)


def golden_texts() -> dict[str, str]:
    """Every golden file's text by its path under ``golden/kubernetes``."""
    manifests = {f"{recipe}.yaml": manifest_of(recipe) for recipe in RECIPES}
    return manifests | {f"chart_{STAGE}/{name}": text for name, text in chart_of(STAGE).items()}


if __name__ == "__main__":
    for name, text in golden_texts().items():
        path = GOLDEN / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
