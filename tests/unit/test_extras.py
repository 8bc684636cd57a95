"""A missing extra is answered with its install line."""

from __future__ import annotations

import pytest

from nemo_axpo import extras
from nemo_axpo.errors import MissingExtraError
from nemo_axpo.extras import EXTRAS, Extra, require_extra


@pytest.mark.parametrize("name", EXTRAS)
def test_the_message_holds_the_install_line(name, monkeypatch):
    monkeypatch.setitem(EXTRAS, name, Extra("no_such_module_at_all", EXTRAS[name].purpose))
    with pytest.raises(
        MissingExtraError, match=rf"{EXTRAS[name].purpose.split('(')[0]}.*pip install 'nemo_axpo\[{name}\]'"
    ):
        require_extra(name)


def test_what_is_installed_passes(monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "vllm", Extra("json", "x"))
    require_extra("vllm")
