"""``python`` (ALGORITHM §8): a notebook-like interpreter that keeps its state over the calls of one rollout.

The images of the rollout are there as ``_pil_images`` and ``_images`` (paths), also those that other tools returned. What a
call prints, the value of its last expression, its figures and its error come back; figures become images of the rollout.
An interpreter that misses its deadline or breaks a limit is killed, and the observation says so: never a crash here.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from nemo_axpo.data.images import ImageStore
from nemo_axpo.errors import rule_message
from nemo_axpo.sandbox import seccomp
from nemo_axpo.sandbox.policy import Layer, Limits, Policy
from nemo_axpo.sandbox.probe import probe_layers
from nemo_axpo.tools.agent_prompt import tool_schema
from nemo_axpo.tools.base import ToolUnavailableError
from nemo_axpo.tools.python.fork_server import CHANNEL
from nemo_axpo.tools.python.image_files import ImageFiles
from nemo_axpo.tools.python.server_process import ServerProcess, readable_paths
from nemo_axpo.tools.python.session import CellResult, PythonSession
from nemo_axpo.types import ImageId, ToolResult

logger = logging.getLogger(__name__)
MAX_FIGURE_PIXELS = 16_000_000
"""Larger figures are not decoded."""


@dataclass(frozen=True)
class PythonSettings:
    """Bounds of the tool."""

    sandbox: str = "auto"
    """``auto``: every layer this machine has. ``none``: no wall at all."""
    timeout_s: float = 12.0
    """Of a call that names none."""
    max_timeout_s: float = 60.0
    """A call may not ask for more."""
    max_output_chars: int = 4000
    """Of what a call prints, of its value and of its error, each."""
    limits: Limits = field(default_factory=Limits)


class PythonTool:
    """The tool, shared by all rollouts; interpreters are forked from one warm process."""

    name = "python"

    def __init__(self, image_store: ImageStore, *, settings: PythonSettings | None = None) -> None:
        """ValueError where no layer of the sandbox works and the settings do not say that none is wanted."""
        self._settings = settings or PythonSettings()
        self._store = image_store
        self._policy = sandbox_policy(self._settings)
        self._server = ServerProcess()
        self.image_files = ImageFiles(image_store, directory=self._server.directory / "images")
        self.schema = _schema(self.name, default_timeout_s=self._settings.timeout_s)

    @property
    def layers(self) -> frozenset[Layer]:
        """The walls around every interpreter."""
        return self._policy.layers

    def open(self, images: Sequence[ImageId]) -> _RolloutSession:
        """The state of one rollout; its interpreter starts with the first call."""
        session = PythonSession(self._server, policy=self._policy, max_chars=self._settings.max_output_chars)
        return _RolloutSession(self, session, images)

    def close(self) -> None:
        """Ends every interpreter."""
        self._server.close()

    def timeout_s(self, asked: float | None) -> float:
        """Deadline of a call; ValueError for one that is not a positive number."""
        if asked is None:
            return self._settings.timeout_s
        if not 0 < asked < float("inf"):
            raise ValueError(f"timeout must be a positive number of seconds, at most {self._settings.max_timeout_s:g}")
        return min(float(asked), self._settings.max_timeout_s)

    def keep_figure(self, data: bytes) -> ImageId:
        """ValueError for what is no PNG of a sensible size: the interpreter is not to be trusted."""
        try:
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                if image.width * image.height > MAX_FIGURE_PIXELS:
                    raise ValueError(f"it has {image.width} x {image.height} pixels, at most {MAX_FIGURE_PIXELS} are shown")
                return self._store.add(image.copy())
        except ValueError:
            raise
        except Exception as error:  # what a broken file makes a decoder raise, no list of it is complete
            raise ValueError(f"it is no PNG file ({error})") from error


class _RolloutSession:
    def __init__(self, tool: PythonTool, session: PythonSession, images: Sequence[ImageId]) -> None:
        self._tool, self._session, self._images = tool, session, images
        self._num_sent = 0

    async def call(self, arguments: dict[str, Any]) -> ToolResult:
        try:
            timeout_s = self._tool.timeout_s(arguments.get("timeout"))
        except ValueError as error:
            return ToolResult(str(error), error="bad_arguments")
        if not self._session.is_open:
            await self._session.open()
            self._num_sent = 0
        new = await self._new_images()
        result = await self._session.run(arguments["code"], images=new, timeout_s=timeout_s)
        if result.end != "finished":
            return ToolResult(_killed_text(result.end, timeout_s=timeout_s), error=result.end)
        return await asyncio.to_thread(self._observation, result) if result.figures else self._observation(result)

    async def close(self) -> None:
        await self._session.close()

    async def _new_images(self) -> list[Path]:
        """Files of what the interpreter has not seen. A large picture takes seconds to encode, once."""
        ids = self._images[self._num_sent :]
        paths = [self._session.image_directory / f"image_{self._num_sent + n}.png" for n in range(len(ids))]
        place = self._tool.image_files.place
        for image_id, path in zip(ids, paths, strict=True):
            try:
                await asyncio.to_thread(place, image_id, path, can_share=self._session.is_walled)
            except OSError as error:
                raise ToolUnavailableError(f"an image of the rollout cannot be kept as a file ({error})") from error
        self._num_sent += len(ids)
        return paths

    def _observation(self, result: CellResult) -> ToolResult:
        lines, figures = [], []
        for data in result.figures:
            try:
                figures.append(self._tool.keep_figure(data))
                lines.append(f"Image {len(self._images) + len(figures) - 1} is a figure.")
            except ValueError as error:
                lines.append(f"A figure cannot be shown: {error}.")
        text = "\n".join(part for part in (result_text(result), *lines) if part)
        return ToolResult(text or "(no output)", tuple(figures), error="exception" if result.error else "")


def result_text(result: CellResult) -> str:
    """What a cell printed and returned. An error comes first: it is what the next call has to mend."""
    dropped = f"… ({result.num_dropped} more characters)" if result.num_dropped else ""
    parts = (result.error, result.output.rstrip("\n") + dropped, result.value)
    return "\n".join(part for part in parts if part)


def _killed_text(end: str, *, timeout_s: float) -> str:
    why = {
        "timeout": f"the code ran longer than {timeout_s:g} s",
        "died": "the interpreter ended: the code exited, or used too much memory or CPU time",
        "garbled": "the interpreter ended: the code wrote into its own connection",
    }[end]
    return f"{why}. The next call starts a new interpreter; variables are lost, images are there again"


def sandbox_policy(settings: PythonSettings) -> Policy:
    """The strongest set of layers of this machine, named in the log. ValueError where there is none of them."""
    if settings.sandbox == "none":
        logger.warning("python tool: sandbox=none; code written by the model can do whatever this user can")
        return Policy(frozenset(), settings.limits, ())
    probes = probe_layers()
    layers = frozenset(probe.layer for probe in probes if not probe.reason)
    missing = [f"{probe.layer} ({probe.reason})" for probe in probes if probe.reason]
    walls = layers - {Layer.RLIMITS}
    if not walls:
        rule = "the python tool needs namespaces, Landlock or seccomp to shut code in"
        cure = "run on a Linux kernel that has one, or say tools.python.sandbox=none in so many words"
        raise ValueError(rule_message(rule, got=f"none: {', '.join(missing)}", cure=cure))
    level = logging.WARNING if missing else logging.INFO
    logger.log(
        level, "python tool: shut in by %s%s", ", ".join(sorted(layers)), f"; without {', '.join(missing)}" * bool(missing)
    )
    program = seccomp.build_filter(allow_fork=False, channel=CHANNEL) if Layer.SECCOMP in layers else b""
    return Policy(layers, settings.limits, readable_paths(), program)


def _schema(name: str, *, default_timeout_s: float) -> dict[str, Any]:
    schema = tool_schema(name)
    schema["function"]["parameters"]["properties"]["timeout"]["default"] = int(default_timeout_s)
    return schema
