"""AXPO as an algorithm of NeMo-Aligner: a ``ReinforceTrainer`` and an actor around the same parts as the main loop.

NeMo-Aligner has no registry: an algorithm is a trainer class, an actor class, an entry script and a YAML file. They are

    trainer.py                          AXPOTrainer
    actor_model.py                      MegatronQwen3VLAXPOActorModel
    train_qwen3_vl_axpo_actor.py        the entry script
    conf/qwen3_vl_axpo_actor.yaml       trainer.axpo, model.axpo, exp_manager
"""

from nemo_axpo.aligner.registry import register

__all__ = ["register"]
