"""``nemo-axpo`` for processes that are forked (see ``forked.py``)."""

from __future__ import annotations

from nemo_axpo.cli import main

__all__ = ["main"]
