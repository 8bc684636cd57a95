"""Tools by name: the built-in ones, and those a user brings in one file.

A tool of one's own is named ``module:factory`` or ``path/to/file.py:factory``. The factory gets the image store and, as
keyword arguments, what ``tools.options`` says under that name, and returns a :class:`nemo_axpo.tools.base.Tool`:

    tools:
      names: [image_zoom_in, my_tools.py:Calculator]
      options: {"my_tools.py:Calculator": {precision: 12}}
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from nemo_axpo.config.schema import ToolsConfig
from nemo_axpo.data.images import ImageStore
from nemo_axpo.errors import rule_message
from nemo_axpo.tools.base import Tool
from nemo_axpo.tools.limits import call_limit


def build_tool(name: str, *, config: ToolsConfig, images: ImageStore) -> Tool:
    """ValueError for a name that is neither, or a factory that returns no tool."""
    if name in config.servers:
        return _remote(name, config, images)
    if name in _BUILT_IN:
        return _BUILT_IN[name](config, images)
    if ":" not in name:
        rule = f"tools.names may hold {', '.join(_BUILT_IN)}, module:factory and path/to/file.py:factory"
        raise ValueError(rule_message(rule, got=repr(name), cure="correct the name"))
    tool = _own_factory(name)(images, **config.options.get(name, {}))
    if not isinstance(tool, Tool):
        rule = f"the factory {name} must return a tool, with name, schema and open (nemo_axpo/tools/base.py)"
        raise ValueError(rule_message(rule, got=type(tool).__name__, cure="add what is missing"))  # noqa: TRY004 - of a config
    return tool


def check_options(config: ToolsConfig) -> list[str]:
    """Problems of ``tools.options``, ``tools.servers`` and ``tools.limits``: entries that no tool reads, and a deadline no call keeps."""
    cure = f"use one of {', '.join(config.names)}"
    unread = [name for name in config.options if name not in config.names or name in _BUILT_IN]
    unasked = [name for name, urls in config.servers.items() if name not in config.names or not urls]
    unlimited = [name for name in config.limits if name not in config.names]
    return [
        *(rule_message("tools.limits names entries of tools.names", got=repr(n), cure=cure) for n in unlimited),
        *_python_deadlines(config),
        *(rule_message("tools.options is read by one's own tools in tools.names", got=repr(n), cure=cure) for n in unread),
        *(rule_message("tools.servers names servers of tools in tools.names", got=repr(n), cure=cure) for n in unasked),
    ]


def _python_deadlines(config: ToolsConfig) -> list[str]:
    limit = call_limit(config, "python").timeout_s
    if "python" not in config.names or config.python.timeout_s <= limit:
        return []
    rule = "tools.python.timeout_s must not be above the limit of a call, or no program gets the time its schema tells of"
    cure = "raise tools.limits.python.timeout_s or tools.timeout_s"
    return [rule_message(rule, got=f"{config.python.timeout_s:g} > {limit:g}", cure=cure)]


def _remote(name: str, config: ToolsConfig, images: ImageStore) -> Tool:
    from nemo_axpo.tools.server.client import RemoteTool

    return RemoteTool(name, urls=config.servers[name], image_store=images, timeout_s=call_limit(config, name).timeout_s)


def _zoom(config: ToolsConfig, images: ImageStore) -> Tool:
    from nemo_axpo.tools.image_zoom_in import ImageZoomIn

    return ImageZoomIn(images, min_side=config.min_crop_side, observation=config.observation)


def _python(config: ToolsConfig, images: ImageStore) -> Tool:
    from nemo_axpo.sandbox.policy import MIB, Limits
    from nemo_axpo.tools.python.tool import PythonSettings, PythonTool

    section = config.python
    limits = Limits(memory_bytes=section.memory_mib * MIB, scratch_bytes=section.scratch_mib * MIB)
    bounds = section.model_dump(include={"sandbox", "timeout_s", "max_timeout_s", "max_output_chars"})
    return PythonTool(images, settings=PythonSettings(**bounds, limits=limits))


def _search(config: ToolsConfig, images: ImageStore) -> Tool:
    from nemo_axpo.tools.search.build import build_search

    return build_search(config.search)


_BUILT_IN: Mapping[str, Callable[[ToolsConfig, ImageStore], Tool]] = {
    "image_zoom_in": _zoom,
    "python": _python,
    "tavily-search": _search,
}


def _own_factory(name: str) -> Callable[..., Tool]:
    where, _, attribute = name.rpartition(":")
    module = _load_file(Path(where)) if where.endswith(".py") else _load_module(where)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        rule = f"{where} must define the factory of tools.names"
        message = rule_message(rule, got=f"no callable {attribute!r} in it", cure="correct the name after the colon")
        raise ValueError(message)  # noqa: TRY004 - of a config
    return factory


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"nemo_axpo_tool_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(rule_message("a file of tools.names must exist", got=path, cure="correct its path"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        cure = "install it, or give the path of its file"
        raise ValueError(rule_message("a module of tools.names must be importable", got=error, cure=cure)) from error
