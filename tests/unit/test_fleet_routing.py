"""Routing on small numbers."""

from __future__ import annotations

import pytest

from nemo_axpo.engines.fleet.routing import Router, prefix_key


@pytest.mark.parametrize(
    "request_id,key",
    [
        ("q7/3/t0", "q7"),
        ("q7/3/t12", "q7"),
        ("q7/3/k0/t1", "q7"),
        ("data/shard 4/q7/10/k3/t1", "data/shard 4/q7"),
        ("canary/0/tool image", "canary/0/tool image"),
        ("probe", "probe"),
    ],
)
def test_prefix_key(request_id, key):
    assert prefix_key(request_id) == key


def router(*names: str, margin: int = 2) -> Router:
    router = Router(names, spill_margin=margin)
    for name in names:
        router.set_up(name, True)
    return router


def send(router: Router, *keys: str) -> str:
    names = [router.choose(key) for key in keys]
    for name in names:
        router.started(name)
    return "".join(names)


def test_questions_are_dealt_to_the_least_loaded():
    r = router("a", "b", "c")
    assert "".join(send(r, key) for key in ("q0", "q1", "q2", "q3")) == "abca"
    for name in "abc":
        r.ended(name)
    assert r.in_flight == {"a": 1, "b": 0, "c": 0}
    assert send(r, "q4") == "b"


def test_a_question_spills_over_when_its_home_is_busier_by_more_than_the_margin():
    r = router("a", "b", margin=2)
    placed = "".join(send(r, "q") for _ in range(8))
    # home a until it has 3 more than b (0); then b is a second home, and the less loaded home is taken
    assert placed == "aaabbbab"


def test_what_failed_is_avoided_while_there_is_another():
    r = router("a", "b")
    assert r.choose("q") == "a"
    assert r.choose("q", avoid=["a"]) == "b"
    assert r.choose("q", avoid=["a", "b"]) in ("a", "b")
    r.set_up("b", False)
    assert r.choose("q", avoid=["a"]) == "a"
    r.set_up("a", False)
    assert r.choose("q") is None


def test_a_server_that_was_down_is_no_home_any_more():
    r = router("a", "b")
    assert (
        send(
            r,
            "q",
        )
        == "a"
    )
    r.set_up("a", False)
    assert send(r, "q") == "b"
    r.set_up("a", True)
    r.ended("a")
    assert send(r, "q") == "b"


def test_new_weights_make_every_server_equal():
    r = router("a", "b")
    send(r, "q")
    r.forget_homes()
    assert send(r, "q") == "b"
