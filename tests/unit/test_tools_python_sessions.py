"""What interpreters share, and what is left of them: image files, the server, processes, directories."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from nemo_axpo.data.images import ImageStore
from nemo_axpo.models.qwen3_vl.tiny import tiny_image_processor
from nemo_axpo.sandbox.policy import MIB, Limits, Policy
from nemo_axpo.sandbox.probe import probe_layers
from nemo_axpo.tools.base import ToolUnavailableError
from nemo_axpo.tools.python import fork_server, frames
from nemo_axpo.tools.python.image_files import ImageFiles
from nemo_axpo.tools.python.process_handle import ProcessHandle
from nemo_axpo.tools.python.session import PythonSession
from nemo_axpo.tools.python.tool import PythonSettings, PythonTool


@pytest.fixture(scope="module")
def store():
    return ImageStore(tiny_image_processor())


@pytest.fixture(scope="module")
def tool(store):
    settings = PythonSettings(limits=Limits(scratch_bytes=2 * MIB, file_bytes=MIB))
    tool = PythonTool(store, settings=settings)
    yield tool
    tool.close()


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def cell(tool, code, *, images=()):
    async def once():
        session = tool.open(images)
        try:
            return await session.call({"code": code})
        finally:
            await session.close()

    return asyncio.run(once())


def eventually(is_true, *, within_s=5.0):
    deadline = time.monotonic() + within_s
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


# ------------------------------------------------------------------------------------------------------- image files
def test_a_picture_larger_than_the_scratch_space_is_there(tool, store):
    images = [store.add(noise(1200, 1000))]  # 3.6 MB that nothing compresses
    assert cell(tool, "_pil_images[0].size, os.path.getsize(_images[0]) > 3_600_000", images=images).error == "exception"
    result = cell(tool, "import os; _pil_images[0].size, os.path.getsize(_images[0]) > 3_600_000", images=images)
    assert result.text == "((1200, 1000), True)"


def test_no_cell_changes_the_picture_that_other_rollouts_see(tool, store):
    images = [store.add(Image.new("RGB", (60, 40), "red"))]
    for change in ("_pil_images[0].rotate(90).save(_images[0])", "import os; os.remove(_images[0])", "open(_images[0], 'r+')"):
        assert cell(tool, change, images=images).error == "exception"
    look = "from PIL import Image; Image.open(_images[0]).size, _pil_images[0].getpixel((0, 0))"
    assert cell(tool, look, images=images).text == "((60, 40), (255, 0, 0))"


def test_nor_does_it_without_walls(store):
    tool = PythonTool(store, settings=PythonSettings(sandbox="none"))
    images = [store.add(Image.new("RGB", (60, 40), "red"))]
    assert cell(tool, "_pil_images[0].resize((9, 9)).save(_images[0])", images=images).error == ""
    assert cell(tool, "from PIL import Image; Image.open(_images[0]).size", images=images).text == "(60, 40)"
    tool.close()


def test_a_picture_that_does_not_fit_is_tried_again(tool, store):
    fill = "b = []\ntry:\n    while True: b.append(bytearray(16 << 20))\nexcept MemoryError: print(len(b) > 9)"
    images = []

    async def scenario():
        session = tool.open(images)
        results = [await session.call({"code": fill})]
        images.append(store.add(Image.new("RGB", (6000, 4000))))  # 72 MB
        images.append(store.add(Image.new("RGB", (60, 40))))
        results += [await session.call({"code": code}) for code in ("len(_pil_images), b.clear()", "[i.size for i in _pil_images]")]
        await session.close()
        return [result.text for result in results]

    assert asyncio.run(scenario()) == [
        "True",
        "Image 0 is not in _pil_images yet: MemoryError\n(0, None)",
        "[(6000, 4000), (60, 40)]",
    ]


def test_files_are_encoded_once_and_the_oldest_forgotten(store, tmp_path):
    ids = [store.add(noise(40 + n, 40)) for n in range(3)]
    files = ImageFiles(store, directory=tmp_path / "kept", max_kept_bytes=12_000)  # two of about 5 kB
    for n, image_id in enumerate(ids):
        files.place(image_id, tmp_path / f"{n}.png", can_share=True)
    assert {path.stem for path in (tmp_path / "kept").iterdir()} == set(ids[1:])
    assert Image.open(tmp_path / "0.png").size == (40, 40)  # the place outlives the kept file
    files.place(ids[2], tmp_path / "again.png", can_share=True)
    assert (tmp_path / "again.png").stat().st_ino == (tmp_path / "2.png").stat().st_ino
    files.place(ids[2], tmp_path / "own.png", can_share=False)
    assert (tmp_path / "own.png").stat().st_ino != (tmp_path / "2.png").stat().st_ino
    files.place(ids[2], tmp_path / "2.png", can_share=True)  # again, after a call that was cancelled
    assert Image.open(tmp_path / "2.png").size == (42, 40)


# ------------------------------------------------------------------------------------------- servers and processes
def test_many_interpreters_asked_for_at_once(store):
    tool = PythonTool(store)

    async def rollout(number):
        session = tool.open([])
        result = await session.call({"code": f"{number} + 1", "timeout": 60})
        await session.close()
        return result.text

    async def all_rollouts():
        return await asyncio.gather(*map(rollout, range(64)))

    assert asyncio.run(all_rollouts()) == [str(n + 1) for n in range(64)]
    assert tool._server.num_starts == 1
    assert eventually(lambda: tool._server.num_forks() == 0)
    assert not any(path.is_dir() for path in tool._server.directory.iterdir())
    tool.close()


def test_a_call_cancelled_while_its_interpreter_starts_leaves_nothing(tool):
    tool._server.start()

    async def cancelled(after_s):
        session = tool.open([])
        call = asyncio.create_task(session.call({"code": "import time; time.sleep(60)"}))
        await asyncio.sleep(after_s)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await session.close()

    async def all_of_them():
        for n in range(12):
            await cancelled(0.003 * n)

    descriptors = len(os.listdir("/proc/self/fd"))
    asyncio.run(all_of_them())
    assert eventually(lambda: tool._server.num_forks() == 0)
    assert eventually(lambda: not [p for p in tool._server.directory.iterdir() if p.is_dir() and p.name != "images"])
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_a_fork_that_fails_is_one_interpreters_failure():
    ours, theirs = socket.socketpair()
    request = {"layers": [], "limits": {}, "readable": [], "seccomp_filter": "", "base": "/", "max_chars": 9}

    def no_process(policy, creator):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with ours, theirs, pytest.MonkeyPatch.context() as patch:
        patch.setattr(fork_server, "fork", no_process)
        fork_server._fork_interpreter(request, channel=theirs.fileno())
        data = ours.recv(4096)
    assert "Resource temporarily unavailable" in json.loads(data[frames.HEADER.size :])["failed"]


def test_what_a_cell_starts_ends_with_it_also_without_walls(store):
    tool = PythonTool(store, settings=PythonSettings(sandbox="none"))
    started = cell(tool, "import subprocess; subprocess.Popen(['sleep', '999']).pid")
    assert eventually(lambda: not os.path.exists(f"/proc/{started.text}"))
    tool.close()


def test_a_handle_means_one_process_only():
    process = subprocess.Popen(["sleep", "999"])
    handle = ProcessHandle(process.pid)
    handle.kill()
    assert process.wait() == -signal.SIGKILL
    handle.kill()
    with pytest.raises(ProcessLookupError):
        ProcessHandle(process.pid)


def test_a_server_that_is_gone_takes_no_interpreter(store):
    tool = PythonTool(store)
    with pytest.raises(ToolUnavailableError, match="takes no interpreter"):
        tool._server.open({}, channel=socket.socket(socket.AF_UNIX))
    tool.close()


@pytest.mark.parametrize("lost", ["directory", "images"])
def test_without_room_on_the_disk_the_rollout_is_lost(store, lost):
    tool = PythonTool(store)
    images = [store.add(Image.new("RGB", (60, 40), "red"))]
    if lost == "directory":
        shutil.rmtree(tool._server.directory)
    else:
        (tool._server.directory / "images").write_text("no directory")
    with pytest.raises(ToolUnavailableError, match="has no place|cannot be kept"):
        cell(tool, "1", images=images)
    tool.close()


def test_the_users_own_mask_of_rights_does_not_matter(store):
    mask = os.umask(0o077)
    try:
        tool = PythonTool(store)
        images = [store.add(Image.new("RGB", (60, 40), "red"))]
        look = "import numpy, json; from PIL import Image; Image.open(_images[0]).size"
        assert cell(tool, look, images=images).text == "(60, 40)"
        tool.close()
    finally:
        os.umask(mask)


# ------------------------------------------------------------------------------------------------------ ways to be root
def test_the_root_of_a_user_namespace_has_every_layer_too():
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-Ur", "true"], check=False).returncode:
        pytest.skip("no user namespaces here")
    code = "from nemo_axpo.sandbox.probe import probe_layers; print([p.reason for p in probe_layers()])"
    done = subprocess.run([unshare, "-Ur", sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([probe.reason for probe in probe_layers()])


def test_a_policy_without_layers_still_gets_an_interpreter(tool):
    session = PythonSession(tool._server, policy=Policy(frozenset(), Limits(), ()), max_chars=99)
    assert not session.is_walled
    result = asyncio.run(one_and_close(session))
    assert result.value == "42"


async def one_and_close(session):
    try:
        return await session.run("6 * 7", timeout_s=10)
    finally:
        await session.close()
