"""Tools over HTTP: what a remote tool returns is what the local one does, and failures lose a rollout, never judge it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys

import httpx2
import pytest
from PIL import Image

from nemo_axpo.config.load import load_config
from nemo_axpo.data.images import ImageStore
from nemo_axpo.models.qwen3_vl.tiny import tiny_image_processor
from nemo_axpo.tools.base import Tool, ToolUnavailableError
from nemo_axpo.tools.build import build_tool, check_options
from nemo_axpo.tools.image_zoom_in import ImageZoomIn
from nemo_axpo.tools.server.client import RemoteTool
from nemo_axpo.tools.server.command import serve
from nemo_axpo.tools.server.wire import TOKEN_VARIABLE

TOKEN = "a-token-for-tests"
OBSERVATION = load_config([]).tools.observation


class Server:
    """A tool server in a process of its own."""

    def __init__(self):
        command = [sys.executable, "-m", "nemo_axpo.cli", "tool-server", "tools.names=[image_zoom_in,python]", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "tools.min_crop_side=8"],
            env=os.environ | {TOKEN_VARIABLE: TOKEN},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = re.search(r"http://\S+", self.process.stdout.readline())[0]

    def close(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def store():
    return ImageStore(tiny_image_processor())


def remote(server, store, name="python", **options):
    return RemoteTool(name, urls=[server.url], image_store=store, **({"timeout_s": 20, "token": TOKEN} | options))


def picture(store):
    image = Image.new("RGB", (60, 40), "red")
    image.paste("blue", (30, 0, 60, 40))
    return store.add(image)


def test_a_crop_is_the_local_one(server, store):
    images = [picture(store)]
    arguments = {"bbox_2d": [400, 0, 800, 1000], "label": "middle"}
    tools = [remote(server, store, "image_zoom_in"), ImageZoomIn(store, min_side=8, observation=OBSERVATION)]
    assert isinstance(tools[0], Tool) and tools[0].schema == tools[1].schema

    async def call(tool):
        session = tool.open(images)
        result = await session.call(arguments)
        await session.close()
        return result

    there, here = [asyncio.run(call(tool)) for tool in tools]
    assert there == here and there.image_ids


def test_state_and_images_of_a_rollout(server, store):
    images = [picture(store)]

    async def rollout():
        session, results = remote(server, store).open(images), []
        for code in ("x = len(_pil_images)", "_pil_images[0].crop((0, 0, 32, 32))", "x, len(_pil_images)"):
            results.append(await session.call({"code": code}))
            images.extend(results[-1].image_ids)
        images.append(store.add(Image.new("RGB", (32, 32), "green")))  # another tool's
        results.append(await session.call({"code": "len(_pil_images), _pil_images[-1].getpixel((0, 0))"}))
        await session.close()
        return results

    first, crop, count, last = asyncio.run(rollout())
    assert (first.text, crop.text, count.text, last.text) == (
        "(no output)",
        "Image 1 is a figure.",
        "(1, 2)",
        "(3, (0, 128, 0))",
    )
    assert store.image(crop.image_ids[0]).size == (32, 32)


def test_sessions_are_apart_and_end(server, store):
    async def two():
        tool = remote(server, store)
        first, second = tool.open([]), tool.open([])
        await first.call({"code": "x = 1"})
        result = await second.call({"code": "x"})
        open_before = httpx2.get(f"{server.url}/health").json()["sessions"]
        await first.close()
        await second.close()
        return result.error, open_before, httpx2.get(f"{server.url}/health").json()

    assert asyncio.run(two()) == ("exception", 2, {"status": "ok", "sessions": 0})


def test_a_call_that_is_sent_again_is_not_executed_again(server):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx2.Client(base_url=server.url, headers=headers) as client:
        session = client.post("/v1/sessions", json={"tool": "python"}).json()["session"]
        calls = f"/v1/sessions/{session}/calls"
        client.post(calls, json={"number": 0, "arguments": {"code": "n = 0"}, "images": []})
        call = {"number": 1, "arguments": {"code": "n += 1; n"}, "images": []}
        assert [client.post(calls, json=call).json()["text"] for _ in range(3)] == ["1", "1", "1"]
        wrong = [
            ({"number": 5, "arguments": {"code": "1"}, "images": []}, "call 2 is next; got 5"),
            ({"number": 2, "arguments": "1", "images": []}, "a call has arguments"),
            ({"number": 2, "arguments": {}, "images": []}, "missing argument code"),
            ({"number": 2, "arguments": {"code": "1"}, "images": ["AAAA"]}, "an image cannot be read"),
        ]
        for body, message in wrong:
            answer = client.post(calls, json=body)
            assert answer.status_code == 422 and message in answer.json()["error"]
        assert client.post(calls, content=b"{").status_code == 422
        assert client.delete(f"/v1/sessions/{session}").status_code == 200
        assert client.post(calls, json=call).status_code == 404


def test_only_health_is_open_to_all(server):
    for path, headers in (("/v1/tools", {}), ("/v1/tools", {"Authorization": "Bearer wrong"})):
        assert httpx2.get(server.url + path, headers=headers).status_code == 401
    assert httpx2.post(f"{server.url}/v1/sessions", json={"tool": "python"}).status_code == 401
    assert httpx2.get(f"{server.url}/health").json()["status"] == "ok"


def test_bad_addresses_and_tokens_stop_the_start(server, store, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(ValueError, match=f"need a token in {TOKEN_VARIABLE}; got none"):
        remote(server, store, token=None)
    with pytest.raises(ValueError, match="must answer; got .* answered 401: the token is missing or wrong"):
        remote(server, store, token="wrong")
    with pytest.raises(ValueError, match="must offer the tool search; got image_zoom_in, python"):
        remote(server, store, "search")
    with pytest.raises(ValueError, match=r"http://127.0.0.1:9 must answer; got .*: start it \(nemo-axpo tool-server\)"):
        RemoteTool("python", urls=["http://127.0.0.1:9"], image_store=store, timeout_s=1, token=TOKEN)
    with pytest.raises(ValueError, match="a tool server needs a token"):
        serve(load_config([]), host="127.0.0.1", port=0, max_concurrent_calls=1)


def test_a_server_that_dies_loses_the_rollout(store):
    server = Server()

    async def die_between():
        tool = remote(server, store)
        session = tool.open([])
        await session.call({"code": "1"})
        server.process.kill()
        server.process.wait()
        with pytest.raises(ToolUnavailableError, match="cannot be reached"):
            await session.call({"code": "2"})
        await session.close()

    asyncio.run(die_between())


def test_a_session_that_is_gone_loses_the_rollout(server, store):
    async def vanish():
        session = remote(server, store).open([])
        await session.call({"code": "1"})
        httpx2.delete(session._path, headers={"Authorization": f"Bearer {TOKEN}"})
        with pytest.raises(ToolUnavailableError, match="404: the session is gone"):
            await session.call({"code": "2"})

    asyncio.run(vanish())


def test_by_config(server, store, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    config = load_config(["tools.names=[python]", f"+tools.servers={{python:['{server.url}']}}"]).tools
    tool = build_tool("python", config=config, images=store)
    assert asyncio.run(tool.open([]).call({"code": "6 * 7"})).text == "42"
    assert check_options(config) == []
    problems = check_options(config.model_copy(update={"servers": {"search": ("http://x",), "python": ()}}))
    assert [problem.split("; ")[1] for problem in problems] == ["got 'search': use one of python", "got 'python': use one of python"]
