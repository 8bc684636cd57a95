"""``nemo-axpo tool-server``."""

from __future__ import annotations

import os
import socket

import uvicorn

from nemo_axpo.config.schema import Config
from nemo_axpo.data.images import ImageStore, load_image_processor
from nemo_axpo.errors import rule_message
from nemo_axpo.tools.build import build_tool
from nemo_axpo.tools.limits import call_limits
from nemo_axpo.tools.registry import ToolRegistry
from nemo_axpo.tools.server.app import ServerLimits, ToolServer
from nemo_axpo.tools.server.wire import TOKEN_VARIABLE

_QWEN3_VL_TOKEN_SIDE = 32
"""Pixels of a language-model token's side: the shortest side of a crop where no checkpoint says otherwise."""


def serve(config: Config, *, host: str, port: int, max_concurrent_calls: int) -> None:
    """Until interrupted. ValueError without a token in the environment, or for tools that cannot be built."""
    token = os.environ.get(TOKEN_VARIABLE)
    if not token:
        cure = f"export {TOKEN_VARIABLE}=$(openssl rand -hex 32), here and where the trainer runs"
        raise ValueError(rule_message(f"a tool server needs a token in {TOKEN_VARIABLE}", got="none", cure=cure))
    images = ImageStore(load_image_processor(config.model.path) if config.model.path else None)
    tools = config.tools
    if not config.model.path and tools.min_crop_side is None:
        tools = tools.model_copy(update={"min_crop_side": _QWEN3_VL_TOKEN_SIDE})
    registry = ToolRegistry(build_tool(name, config=tools, images=images) for name in tools.names)
    limits = ServerLimits(max_concurrent_calls=max_concurrent_calls)
    of_tools = call_limits(tools, registry.names)
    server = ToolServer(registry, images=images, token=token, limits=limits, of_tools=of_tools)
    listening = socket.create_server((host, port))
    print(f"serving {', '.join(registry.names)} on http://{host}:{listening.getsockname()[1]}", flush=True)
    settings = uvicorn.Config(server.app(), log_level="warning", access_log=False, lifespan="on")
    uvicorn.Server(settings).run(sockets=[listening])
