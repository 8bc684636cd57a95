"""The rotary settings of a ``config.json``, under the names of both supported versions of transformers.

transformers 5 keeps them in ``rope_parameters``; 4.57 in ``rope_theta`` and ``rope_scaling``, and where it finds neither it
takes defaults without a word. A file that has all three says the same to both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def with_both_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a ``config.json`` whose ``text_config`` has all three keys where it has any; a copy."""
    text = dict(config["text_config"])
    parameters = dict(text.get("rope_parameters") or text.get("rope_scaling") or {})
    if "rope_theta" in text:
        parameters.setdefault("rope_theta", text["rope_theta"])
    if parameters:
        text["rope_parameters"] = parameters
        text["rope_scaling"] = {name: value for name, value in parameters.items() if name != "rope_theta"} or None
    if "rope_theta" in parameters:
        text["rope_theta"] = parameters["rope_theta"]
    return {**config, "text_config": text}
