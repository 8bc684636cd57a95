"""What the model may call, and the bounds of its calls."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from nemo_axpo.config.sections.base import Count, Positive, Section


class PythonToolConfig(Section):
    """The python tool: an interpreter per rollout, behind the kernel's walls."""

    sandbox: Literal["auto", "none"] = "auto"
    """auto: every layer this machine has, refused where it has none. none: code of the model runs as this user."""
    timeout_s: Positive = 12.0
    """Of a call that names no timeout."""
    max_timeout_s: Positive = 60.0
    """Longest timeout a call may name."""
    max_output_chars: Count = 4_000
    """Of what a call prints, of its value and of its error, each."""
    memory_mib: Count = 2_048
    """Address space of an interpreter."""
    scratch_mib: Count = 64
    """Files of an interpreter together."""


class SearchConfig(Section):
    """The tool tavily-search; the key of the service is TAVILY_API_KEY of the environment."""

    backend: Literal["tavily", "corpus"] = "tavily"
    """A service that speaks Tavily's protocol, or a file of pages ranked by BM25."""
    corpus: str | None = None
    """JSONL file with title, url and content a line."""
    excluded_domains: tuple[str, ...] = ("huggingface.co",)
    """Never found, in training and evaluation alike: benchmark questions lie there."""
    max_result_chars: Count = 1_000
    """Of one page's passage; it becomes tokens of the row."""
    url: str = "https://api.tavily.com"
    """Of the service, without the path ``/search``."""
    search_depth: Literal["basic", "advanced"] = "basic"
    """advanced is better, slower and costs twice as much."""
    per_minute: Positive | None = 90.0
    """Requests of this process; null: no limit. A development key allows 100, and all replicas share it."""
    max_concurrent: Count = 8
    """Requests on their way at the same time."""
    timeout_s: Positive = 15.0
    """Of one attempt."""
    max_retries: Annotated[int, Field(ge=0)] = 3
    """Of an attempt that met a busy or absent service, with growing pauses."""
    max_time_s: Positive = 50.0
    """Of all attempts of one call, waiting for its turn included; then the rollout is lost and retried."""
    cache_dir: str | None = "outputs/search_cache"
    """Answers on disk, shared by runs, by request: a rerun is free and finds the same; null: none."""


class ToolLimitsConfig(Section):
    """Bounds of one tool's calls."""

    max_concurrent: Count | None = None
    """Calls of this process at the same time; further ones wait, which their timeout does not count. null: no limit."""
    timeout_s: Positive | None = None
    """Of one call; null: tools.timeout_s."""


class ToolsConfig(Section):
    """What the model may call."""

    names: tuple[str, ...] = ("image_zoom_in",)
    """Tools offered in the system turn, in the order of the schemas: built-in ones, or ``module:factory`` and
    ``path/to/file.py:factory`` of one's own."""
    instructions: str | None = None
    """System text before the tools. ``agent``: how to work, to use each tool and to answer (tools/agent_prompt.yaml), what speaks of
    tools left out where there are none; a path: that text file; null: none, as in the embedded world."""
    options: dict[str, dict[str, Any]] = {}
    """Keyword arguments of one's own tools, by their entry in ``names``."""
    servers: dict[str, tuple[str, ...]] = {}
    """Tools that run on tool servers (``nemo-axpo tool-server``): addresses by tool name."""
    limits: dict[str, ToolLimitsConfig] = {}
    """By entry in ``names``."""
    python: PythonToolConfig = PythonToolConfig()
    search: SearchConfig = SearchConfig()
    min_crop_side: Count | None = None
    """Shortest side of a crop in pixels; a smaller box grows around its centre. null: one vision token."""
    observation: str = "Image {index} is the crop."
    """Text of image_zoom_in's observation; ``{index}`` is the index of the new image."""
    timeout_s: Positive = 60.0
    """Limit of one call, above the limits tools set themselves."""
    max_error_chars: Count = 400
    """Longer error texts are cut; they become tokens of the row."""
