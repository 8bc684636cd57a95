"""The python tool: what an observation says, what state survives, and what happens to an interpreter that misbehaves."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import time

import pytest
from PIL import Image

from nemo_axpo.data.images import ImageStore
from nemo_axpo.models.qwen3_vl.tiny import tiny_image_processor
from nemo_axpo.sandbox import seccomp
from nemo_axpo.sandbox.policy import Layer, Limits, Policy
from nemo_axpo.sandbox.probe import Probe
from nemo_axpo.tools.base import Tool, ToolUnavailableError
from nemo_axpo.tools.python import tool as tool_module
from nemo_axpo.tools.python.fork_server import CHANNEL
from nemo_axpo.tools.python.server_process import ServerProcess, readable_paths
from nemo_axpo.tools.python.session import PythonSession, read_result
from nemo_axpo.tools.python.tool import PythonSettings, PythonTool
from nemo_axpo.tools.registry import ToolRegistry


@pytest.fixture(scope="module")
def store():
    return ImageStore(tiny_image_processor())


@pytest.fixture(scope="module")
def tool(store):
    tool = PythonTool(store, settings=PythonSettings(max_output_chars=300))
    yield tool
    tool.close()


@pytest.fixture(scope="module")
def server():
    server = ServerProcess()
    server.start()
    yield server
    server.close()


def run(tool, *cells, images=None, timeout=None):
    """The results of cells in one rollout; figures become images of it."""
    images = [] if images is None else images

    async def run_all():
        session, results = tool.open(images), []
        for code in cells:
            arguments = {"code": code} | ({} if timeout is None else {"timeout": timeout})
            results.append(await session.call(arguments))
            images.extend(results[-1].image_ids)
        await session.close()
        return results

    return asyncio.run(run_all())


def texts(tool, *cells, **options):
    return [result.text for result in run(tool, *cells, **options)]


def test_protocol(tool):
    assert isinstance(tool, Tool)
    registry = ToolRegistry([tool])
    assert registry.argument_error("python", {}) == "missing argument code"
    assert registry.argument_error("python", {"code": "1", "timeout": 5}) == ""
    properties = tool.schema["function"]["parameters"]["properties"]
    assert properties["timeout"]["default"] == 12 and set(properties) == {"code", "timeout"}


def test_output_then_value(tool):
    assert texts(tool, "print('a')\nprint('b')\n1 + 1") == ["a\nb\n2"]
    assert texts(tool, "import sys; print('e', file=sys.stderr)", "x = 3", "None") == ["e", "(no output)", "(no output)"]


def test_variables_live_as_long_as_the_rollout(tool):
    assert texts(tool, "x = [1]", "x.append(2)", "x", "_") == ["(no output)", "(no output)", "[1, 2]", "[1, 2]"]
    (result,) = run(tool, "x")
    assert result.error == "exception" and result.text.endswith("NameError: name 'x' is not defined")


def test_an_error_comes_with_the_line_and_after_it_what_was_printed(tool):
    (result,) = run(tool, "print('before')\ny = 1 / 0")
    lines = result.text.splitlines()
    assert lines[0] == '  File "<cell 1>", line 2, in <module>'
    assert lines[-2:] == ["ZeroDivisionError: division by zero", "before"]
    assert result.error == "exception"
    (syntax,) = texts(tool, "x = = 1")
    assert "SyntaxError" in syntax and "fork_server" not in syntax and "interpreter.py" not in syntax


def test_no_exception_ends_the_interpreter(tool):
    assert texts(tool, "z = 5", "raise SystemExit(1)", "raise KeyboardInterrupt", "z")[-1] == "5"


def test_long_output_is_cut_and_says_so(tool):
    (text,) = texts(tool, "print('x' * 1000)")
    assert text == "x" * 300 + "… (701 more characters)"
    assert len(texts(tool, "'y' * 1000")[0]) == 300


def test_images_of_the_rollout_are_there(tool, store):
    images = [store.add(Image.new("RGB", (60, 40), "red")), store.add(Image.new("RGB", (30, 50), "blue"))]
    cells = (
        "[i.size for i in _pil_images], _pil_images[0].getpixel((0, 0))",
        "from PIL import Image; Image.open(_images[1]).getpixel((3, 3))",
    )
    assert texts(tool, *cells, images=images) == ["([(60, 40), (30, 50)], (255, 0, 0))", "(0, 0, 255)"]


def test_images_of_other_tools_are_appended(tool, store):
    images = [store.add(Image.new("RGB", (60, 40), "red"))]

    async def crop_between():
        session = tool.open(images)
        first = await session.call({"code": "len(_pil_images)"})
        images.append(store.add(Image.new("RGB", (32, 32), "green")))
        second = await session.call({"code": "len(_pil_images), _pil_images[-1].getpixel((1, 1))"})
        await session.close()
        return first.text, second.text

    assert asyncio.run(crop_between()) == ("1", "(2, (0, 128, 0))")


def test_figures_become_images(tool, store):
    shown = "import matplotlib.pyplot as plt\nplt.plot([0, 1])\nplt.show()\nplt.figure()"
    images = [store.add(Image.new("RGB", (60, 40), "red"))]
    figures, picture, count = run(tool, shown, "_pil_images[0].crop((0, 0, 32, 36))", "len(_pil_images)", images=images)
    assert len(figures.image_ids) == 2
    assert figures.text == "<Figure size 640x480 with 0 Axes>\nImage 1 is a figure.\nImage 2 is a figure."
    assert store.image(picture.image_ids[0]).size == (32, 36) and picture.text == "Image 3 is a figure."
    assert count.text == "4"


def test_numbers_are_random_in_the_same_way_in_every_rollout(tool):
    code = "import random, numpy as np; random.random(), np.random.rand(), hash('a')"
    first, second = texts(tool, code), texts(tool, code)
    assert first == second and texts(tool, "import random; random.random()", "random.random()")[0] != first


def test_a_deadline_ends_the_interpreter_and_the_next_call_starts_another(tool, store):
    images = [store.add(Image.new("RGB", (60, 40), "red"))]
    started = time.monotonic()
    late, after = run(tool, "w = 1\nwhile True: pass", "'w' in globals(), len(_pil_images)", images=images, timeout=1)
    assert late.error == "timeout" and late.text.startswith("the code ran longer than 1 s. The next call starts a new")
    assert after.text == "(False, 1)" and time.monotonic() - started < 5


@pytest.mark.parametrize(("timeout", "seconds"), [(None, 12.0), (3, 3.0), (1000, 60.0)])
def test_deadlines(tool, timeout, seconds):
    assert tool.timeout_s(timeout) == seconds


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_no_deadline_is_an_observation(tool, timeout):
    (result,) = run(tool, "1", timeout=timeout)
    assert (result.error, result.text) == ("bad_arguments", "timeout must be a positive number of seconds, at most 60")


@pytest.mark.parametrize("code", ["import os; os._exit(0)", "import ctypes; ctypes.string_at(0)"])
def test_a_death_is_an_observation(tool, code):
    dead, after = run(tool, code, "6 * 7")
    assert dead.error == "died" and "the interpreter ended" in dead.text and after.text == "42"


def test_memory_is_bounded(tool):
    assert texts(tool, "b = bytearray(3 << 30)")[0].endswith("MemoryError")


def test_a_figure_that_is_none_is_said(tool):
    forged = (
        "import base64, json, os, struct\n"
        "b = json.dumps(dict(id=0, output='', num_dropped=0, value='', error='', "
        "figures=[base64.b64encode(b'GIF89a').decode()])).encode()\nos.write(3, struct.pack('<I', len(b)) + b)"
    )
    (result,) = run(tool, forged)
    assert result.text.startswith("A figure cannot be shown: it is no PNG file") and result.image_ids == ()


def test_a_picture_of_any_size_is_not_decoded(tool):
    buffer = io.BytesIO()
    Image.new("1", (20_000, 2_000)).save(buffer, format="PNG")
    with pytest.raises(ValueError, match="20000 x 2000 pixels, at most 16000000"):
        tool.keep_figure(buffer.getvalue())


GOOD = {"id": 4, "output": "a", "num_dropped": 0, "value": "", "error": "", "figures": []}


@pytest.mark.parametrize(
    "wrong",
    [{"id": 5}, {"output": 7}, {"num_dropped": "x"}, {"figures": "x"}, {"figures": [1]}, {"figures": ["%"]}, {"error": None}],
)
def test_replies_are_not_trusted(wrong):
    assert read_result(GOOD | {"output": "a" * 90}, number=4, max_chars=9).output == "a" * 9
    with pytest.raises(ValueError):
        read_result(GOOD | wrong, number=4, max_chars=9)


def test_a_dead_server_loses_its_rollouts_and_is_started_again(store):
    tool = PythonTool(store)

    async def kill_between():
        lost, asleep, fresh = tool.open([]), tool.open([]), tool.open([])
        for session in (lost, asleep):
            assert (await session.call({"code": "1"})).text == "1"
        os.kill(tool._server._process.pid, 9)
        tool._server._process.wait()
        with pytest.raises(ToolUnavailableError, match="the server of the python tool died"):
            await until_it_fails(lost)
        assert (await fresh.call({"code": "3"})).text == "3"
        with pytest.raises(ToolUnavailableError, match="the server of the python tool died"):
            await until_it_fails(asleep)  # though there is another server by now
        for session in (lost, asleep, fresh):
            await session.close()

    async def until_it_fails(session):
        for _ in range(500):  # interpreters end a moment later
            await session.call({"code": "2"})
            await asyncio.sleep(0.01)

    asyncio.run(kill_between())
    tool.close()


def test_nothing_is_left_when_the_tool_closes(store):
    tool = PythonTool(store)
    run(tool, "1")
    directory, process = tool._server.directory, tool._server._process
    assert directory.is_dir()
    tool.close()
    assert not directory.exists() and process.poll() is not None


def test_the_strongest_set_is_used_and_named(monkeypatch, caplog):
    probes = [Probe(layer, "" if layer in (Layer.SECCOMP, Layer.RLIMITS) else "not here") for layer in Layer]
    monkeypatch.setattr(tool_module, "probe_layers", lambda: probes)
    with caplog.at_level(logging.INFO):
        policy = tool_module.sandbox_policy(PythonSettings())
    assert policy.layers == {Layer.SECCOMP, Layer.RLIMITS}
    assert "shut in by rlimits, seccomp; without namespaces (not here), landlock (not here)" in caplog.text


def test_without_any_wall_the_tool_refuses(monkeypatch):
    monkeypatch.setattr(tool_module, "probe_layers", lambda: [Probe(layer, "no Linux") for layer in Layer])
    with pytest.raises(ValueError, match="needs namespaces, Landlock or seccomp.*got none: .*no Linux.*sandbox=none"):
        tool_module.sandbox_policy(PythonSettings())
    assert tool_module.sandbox_policy(PythonSettings(sandbox="none")).layers == frozenset()


# ------------------------------------------------------------------------------------------------------------- forks
def forking(server, **options):
    program = seccomp.build_filter(allow_fork=True, channel=CHANNEL)
    policy = Policy(frozenset(Layer), Limits(), readable_paths(), program)
    return PythonSession(server, policy=policy, max_chars=200, can_fork=True, **options)


def test_forks_start_from_the_same_state_and_part(server):
    async def scenario():
        source = forking(server)
        await source.run("y = [1]; open('f', 'w').write('p')", timeout_s=5)
        forks = [await source.fork() for _ in range(3)]
        for number, fork in enumerate(forks):
            await fork.run(f"y.append({number}); open('f', 'a').write('{number}')", timeout_s=5)
        values = [(await fork.run("y, open('f').read()", timeout_s=5)).value for fork in (source, *forks)]
        for fork in (*forks, source):
            await fork.close()
        return values

    expected = ["([1], 'p')", *(f"([1, {n}], 'p{n}')" for n in range(3))]
    assert asyncio.run(scenario()) == expected


def test_a_fork_ends_alone_and_sees_no_sibling(server):
    async def scenario():
        source = forking(server)
        await source.run("import os, signal", timeout_s=5)
        first, second = await source.fork(), await source.fork()
        await first.run("open('mine', 'w').write('x')", timeout_s=5)
        reached = [
            (await second.run(code, timeout_s=5)).error.splitlines()[-1]
            for code in ("[os.kill(p, 0) for p in range(2, 5) if p != os.getpid()]", "open('/scratch/fork_1/mine').read()")
        ]
        late = await second.run("while True: pass", timeout_s=0.3)
        alive = (await first.run("1", timeout_s=5)).value, (await source.run("2", timeout_s=5)).value
        await first.close()
        await source.close()
        return reached, late.end, alive

    reached, end, alive = asyncio.run(scenario())
    assert all("PermissionError" in line or "ProcessLookupError" in line for line in reached)
    assert (end, alive) == ("timeout", ("1", "2"))


def test_forks_end_with_their_source(server):
    async def scenario():
        source = forking(server)
        fork = await source.fork()
        await source.close()
        deadline = time.monotonic() + 5
        while (end := (await fork.run("1", timeout_s=2)).end) == "finished":  # the kernel takes a moment
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        await fork.close()
        return end

    assert asyncio.run(scenario()) == "died"


def test_a_fork_that_fails_leaves_its_source(server):
    async def scenario():
        source = forking(server)
        await source.run("import resource; resource.setrlimit(resource.RLIMIT_NPROC, (1, 1)); x = 5", timeout_s=5)
        with pytest.raises(ToolUnavailableError, match="it ended at once"):
            await source.fork()
        value = (await source.run("x", timeout_s=5)).value
        await source.close()
        return value

    assert asyncio.run(scenario()) == "5"


def test_an_interpreter_that_may_not_fork_says_so(server):
    policy = Policy(frozenset(Layer), Limits(), readable_paths(), seccomp.build_filter(allow_fork=False, channel=CHANNEL))
    with pytest.raises(ValueError, match="can be forked where its seccomp filter allows it"):
        asyncio.run(PythonSession(server, policy=policy, max_chars=9).fork())


def test_a_sandbox_that_cannot_be_entered_is_the_tools_failure(server):
    policy = Policy(frozenset({Layer.SECCOMP}), Limits(), readable_paths(), b"no filter")
    with pytest.raises(ToolUnavailableError, match="could not be shut in: OSError"):
        asyncio.run(PythonSession(server, policy=policy, max_chars=9).run("1", timeout_s=5))
