"""Entry script: AXPO on Qwen3-VL under NeMo-Aligner, in the form of its ``train_gpt_reinforce_actor.py``.

    torchrun --nproc-per-node 8 -m nemo_axpo.aligner.train_qwen3_vl_axpo_actor \\
        pretrained_checkpoint.restore_from_path=/models/qwen3-vl-8b-sft exp_manager.explicit_log_dir=/results/axpo

``conf/qwen3_vl_axpo_actor.yaml`` holds every key; ``--config-path`` and ``--config-name`` name another file, such as a stage
that the NeMo launcher saved.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run by its path, as the NeMo launcher does: the checkout is not installed there
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from omegaconf import OmegaConf

from nemo_axpo.errors import MissingExtraError
from nemo_axpo.extras import require_extra
from nemo_axpo.launcher.resolvers import register_resolvers
from nemo_axpo.open_files import allow_open_files


def train(cfg: Any) -> None:
    """Trains as a composed config says. ConfigError for keys that are unknown or cannot be honoured."""
    from nemo_axpo.aligner.fit import run_training
    from nemo_axpo.config.checks import check_config, check_model_path
    from nemo_axpo.launcher.nemo_keys import run_from_nemo

    OmegaConf.resolve(cfg)
    run = run_from_nemo(OmegaConf.to_container(cfg))
    config = run.config.model_copy(update={"loop": "aligner"})
    check_config(config, world_size=int(os.environ.get("WORLD_SIZE", "1")))
    check_model_path(config)
    run_training(config, resume=run.resume)


def adopt_slurm_ranks() -> None:
    """Gives tasks that srun started, as the NeMo launcher's are, the ranks that torchrun would have told them."""
    if "RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) == 1:
        return
    from lightning.fabric.plugins.environments import SLURMEnvironment

    slurm = SLURMEnvironment(auto_requeue=False)
    os.environ |= {"RANK": str(slurm.global_rank()), "WORLD_SIZE": str(slurm.world_size())}
    os.environ |= {"LOCAL_RANK": str(slurm.local_rank()), "MASTER_ADDR": slurm.main_address}
    os.environ["MASTER_PORT"] = str(slurm.main_port)


def main() -> None:
    """Composes the config with NeMo's ``hydra_runner`` and trains; without NeMo it says how to install it."""
    try:
        require_extra("nemo")
    except MissingExtraError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    from nemo.core.config import hydra_runner

    adopt_slurm_ranks()
    allow_open_files()
    register_resolvers()
    # Absolute, so that it is found whether this file is run or imported (registry).
    conf = str(Path(__file__).resolve().parent / "conf")
    hydra_runner(config_path=conf, config_name="qwen3_vl_axpo_actor")(train)()


if __name__ == "__main__":
    main()
