"""The teacher of a config: a checkpoint on one of our engines, a chat endpoint, or the embedded world's script."""

from __future__ import annotations

import os

from nemo_axpo import assembly
from nemo_axpo.assembly import Workbench
from nemo_axpo.config.schema import Config
from nemo_axpo.distill.chat_endpoint import ChatEndpoint
from nemo_axpo.distill.scripted_teacher import ScriptedTeacher
from nemo_axpo.engines.base import Engine
from nemo_axpo.errors import ConfigError, rule_message
from nemo_axpo.models.qwen3_vl.loading import read_checkpoint
from nemo_axpo.remote.build import build_client
from nemo_axpo.world.scene import SceneStyle


def build_teacher(config: Config, *, bench: Workbench) -> Engine:
    """An engine that is ready to sample. ConfigError for an endpoint without address, model or key."""
    if config.distill.teacher == "endpoint":
        return _endpoint(config, bench=bench)
    if config.distill.teacher == "scripted":
        return _scripted(config, bench=bench)
    engine = assembly.build_engine(config, bench=bench)
    engine.load_weights(read_checkpoint(bench.checkpoint), policy_version=0)
    return engine


def _endpoint(config: Config, *, bench: Workbench) -> Engine:
    section = config.distill.endpoint
    missing = [name for name in ("url", "model") if getattr(section, name) is None]
    if missing:
        rule = f"distill.teacher=endpoint needs distill.endpoint.{missing[0]}"
        cure = "name the endpoint and its model: distill.endpoint.url=http://host:8000/v1 distill.endpoint.model=..."
        raise ConfigError(rule_message(rule, got="null", cure=cure))
    if section.key_variable and not os.environ.get(section.key_variable):
        rule = f"the teacher's key is read from {section.key_variable}"
        cure = f"export {section.key_variable}=..., or set distill.endpoint.key_variable=null for one without a key"
        raise ConfigError(rule_message(rule, got="it is not set", cure=cure))
    return ChatEndpoint(
        build_client(section),
        model=section.model,
        renderer=bench.renderer,
        image_store=bench.images,
        body=section.body,
    )


def _scripted(config: Config, *, bench: Workbench) -> Engine:
    world = config.world
    return ScriptedTeacher(
        bench.renderer,
        image_store=bench.images,
        style=SceneStyle(dots=world.dots, tint=world.tint, daylight=world.daylight),
        tool_rate=world.tool_rate,
        aim_rate=world.aim_rate,
        direct_accuracy=config.distill.direct_accuracy,
        seed=config.seed,
    )
