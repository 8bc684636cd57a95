"""Tools by name: the built-in ones, and one of a user's own in a file of its own."""

from __future__ import annotations

import asyncio

import pytest

from nemo_axpo.config.load import load_config
from nemo_axpo.config.schema import ToolsConfig
from nemo_axpo.data.images import ImageStore
from nemo_axpo.models.qwen3_vl.tiny import tiny_image_processor
from nemo_axpo.sandbox.policy import MIB
from nemo_axpo.tools.build import build_tool, check_options
from nemo_axpo.tools.limits import CallLimit, call_limits

OWN = '''
from nemo_axpo.types import ToolResult

class Doubler:
    name = "double"
    schema = {"type": "function", "function": {"name": "double", "parameters": {"type": "object"}}}

    def __init__(self, images, *, factor=2):
        self.factor = factor

    def open(self, images):
        return self

    async def call(self, arguments):
        return ToolResult(str(self.factor * arguments["value"]))

    async def close(self):
        pass

def nothing(images):
    return 7
'''


@pytest.fixture
def images():
    return ImageStore(tiny_image_processor())


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "my_tools.py"
    path.write_text(OWN)
    return str(path)


def tools_config(**section):
    return ToolsConfig(**section)


def test_a_tool_of_ones_own_is_one_file(own, images):
    name = f"{own}:Doubler"
    config = tools_config(names=(name,), options={name: {"factor": 3}})
    tool = build_tool(name, config=config, images=images)
    assert tool.name == "double"
    assert asyncio.run(tool.open([]).call({"value": 5})).text == "15"


def test_a_tool_of_an_installed_module(images):
    tool = build_tool("nemo_axpo.tools.image_zoom_in:ImageZoomIn", config=tools_config(), images=images)
    assert tool.name == "image_zoom_in"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("search", "tools.names may hold image_zoom_in, python, .*; got 'search': correct the name"),
        ("nowhere.py:Tool", "a file of tools.names must exist; got nowhere.py: correct its path"),
        ("no_such_package:Tool", "must be importable; got No module named 'no_such_package': install it"),
        ("json:Tool", "json must define the factory of tools.names; got no callable 'Tool' in it"),
    ],
)
def test_names_that_lead_nowhere(name, message, images):
    with pytest.raises(ValueError, match=message):
        build_tool(name, config=tools_config(), images=images)


def test_a_factory_that_returns_no_tool(own, images):
    with pytest.raises(ValueError, match="nothing must return a tool, with name, schema and open .*; got int"):
        build_tool(f"{own}:nothing", config=tools_config(), images=images)


def test_options_that_no_tool_reads():
    config = tools_config(options={"python": {}, "x.py:y": {}})
    problems = check_options(config)
    assert [problem.split("; got ")[1] for problem in problems] == [
        "'python': use one of image_zoom_in",
        "'x.py:y': use one of image_zoom_in",
    ]


def test_limits_by_entry_become_limits_by_tool():
    config = tools_config(
        names=("image_zoom_in", "x.py:y"), limits={"x.py:y": {"max_concurrent": 3}, "image_zoom_in": {"timeout_s": 7}}
    )
    assert check_options(config) == []
    assert call_limits(config, ["image_zoom_in", "own"]) == {
        "image_zoom_in": CallLimit(7.0, None),
        "own": CallLimit(config.timeout_s, 3),
    }


def test_limits_that_no_call_meets():
    (unread,) = check_options(tools_config(limits={"python": {"max_concurrent": 3}}))
    assert unread == "tools.limits names entries of tools.names; got 'python': use one of image_zoom_in"
    (deadline,) = check_options(tools_config(names=("python",), limits={"python": {"timeout_s": 5}}))
    assert "got 12 > 5: raise tools.limits.python.timeout_s" in deadline


def test_the_python_tool_has_the_bounds_of_the_config(images):
    config = load_config(
        ["tools.names=[python]", "tools.python.memory_mib=512", "tools.python.timeout_s=3", "tools.python.scratch_mib=8"]
    )
    tool = build_tool("python", config=config.tools, images=images)
    assert tool.timeout_s(None) == 3
    assert tool._policy.limits.memory_bytes == 512 * MIB and tool._policy.limits.scratch_bytes == 8 * MIB
    tool.close()
