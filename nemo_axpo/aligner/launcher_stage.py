"""The stage ``axpo`` of the NeMo Framework Launcher: ``STR2STAGECLASS["axpo"]``.

The launcher calls an entry script with the stage's own config; ours is the one of NeMo-Aligner's form. Its package is not on
PyPI: it is imported from the launcher's checkout when the stage is registered.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from nemo_axpo.aligner.kubernetes_stage import check_stage, stage_cluster, stage_job
from nemo_axpo.errors import ConfigError, rule_message
from nemo_axpo.launcher.helm_chart import write_chart

STAGE = "axpo"
ENTRY = Path(__file__).parent / "train_qwen3_vl_axpo_actor.py"


def register_stage(stage_classes: MutableMapping[str, Any]) -> type:
    """Sets ``stage_classes["axpo"]``; ``stage_classes``: ``STR2STAGECLASS`` of the launcher's ``main.py``.

    ImportError with the cure where the launcher cannot be imported.
    """
    stage_classes[STAGE] = stage_class()
    return stage_classes[STAGE]


def stage_class() -> type:
    """``AXPOStage``, a ``NeMoStage``."""
    try:
        from nemo_launcher.core.stages import NeMoStage
    except ImportError as error:
        rule = "the stage axpo needs the package nemo_launcher"
        cure = "put NeMo-Framework-Launcher/launcher_scripts on PYTHONPATH, or use `nemo-axpo submit`"
        raise ImportError(rule_message(rule, got=error, cure=cure)) from None

    class AXPOStage(NeMoStage):
        """AXPO under NeMo-Aligner; config ``axpo=qwen3_vl/8b`` and its like."""

        def setup_stage_vars(self, cfg: Any) -> None:
            """Name and section of the stage."""
            self.stage_name = STAGE
            self.stage_cfg = cfg.get(STAGE)
            if "pull_secret" in cfg.cluster and cfg.cluster_type != "k8s":
                rule = "cluster=k8s goes with cluster_type=k8s"
                raise ConfigError(rule_message(rule, got=f"cluster_type={cfg.cluster_type}", cure="give both"))

        def _get_nemo_code_path(self, model_type: str) -> Path:
            return ENTRY

        def _make_nemo_path_command(self) -> list[str]:
            """This package on the path; the launcher's own would look for NeMo's git repository."""
            root = ENTRY.parents[2]
            return [f"cd {root}", f"export PYTHONPATH={root}:\\${{PYTHONPATH}}"]

        def _make_k8s_spec_file(self, template_root: str, cluster_parameters: dict[str, Any], job_path: Any) -> None:
            """The whole chart: values, template, the stage's file. ``template_root`` is where the launcher's would be."""
            cfg = self.cfg
            settings = OmegaConf.to_container(cfg.cluster, resolve=True)
            cluster = stage_cluster(settings, container=cfg.container, env_vars=cfg.env_vars)
            # Devices of a pod are chosen by the cluster, so the launcher's CUDA_VISIBLE_DEVICES stays out.
            words = [word.split("=") for word in (self._cuda_device_max_connections,) if word]
            job = stage_job(job_path.config_file, name=self.job_name, environment=dict(words))
            check_stage(job, cluster, key_file=cfg.wandb_api_key_file)
            write_chart(job, cluster, folder=job_path.folder / "k8s_template", config_file=job_path.config_file)

        def _copy_k8s_helm_chart(self, template_root: str, job_path: Any) -> None:
            """Nothing is left to copy."""

        # Of interleaved pipelines, which are refused; the launcher would ask its own stage "training" for them.
        @property
        def _set_ln_sm_margin(self) -> str:
            return ""

        @property
        def _skip_ag_overlap(self) -> str:
            return ""

    return AXPOStage
