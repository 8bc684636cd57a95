"""Names of jobs on Kubernetes: what it takes, and no two runs under one name."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_axpo.launcher.dns_names import MAX_NAME, is_job_name, job_name


@pytest.mark.parametrize("name", ["a", "axpo-8b", "a" * 44])
def test_a_name_that_is_one_stays(name):
    assert job_name(name, run_dir="/nfs/a") == name


@pytest.mark.parametrize("name", ["", "8b", "Axpo", "axpo_8b", "axpo.8b", "-a", "a-", "ä", "a" * 45])
def test_what_is_none(name):
    assert not is_job_name(name)


def test_what_kubernetes_does_not_take_is_replaced():
    assert re.fullmatch(r"axpo-8b-[0-9a-f]{6}", job_name("axpo_8B", run_dir="/nfs/a"))
    assert re.fullmatch(r"run-8b-[0-9a-f]{6}", job_name("8b", run_dir="/nfs/a"))
    assert re.fullmatch(r"run-[0-9a-f]{6}", job_name("ä", run_dir="/nfs/a"))
    assert re.fullmatch(r"a{37}-[0-9a-f]{6}", job_name("a" * 99, run_dir="/nfs/a"))


def test_two_runs_have_two_names():
    long = "axpo-qwen3-vl-8b-thinking-ablation-of-the-resample-ratio"
    names = [("axpo_8b", "/a"), ("axpo.8b", "/a"), ("axpo_8b", "/b"), (f"{long}-0.25", "/a"), (f"{long}-0.5", "/a")]
    assert len({job_name(name, run_dir=run_dir) for name, run_dir in names}) == len(names)
    assert job_name("axpo_8b", run_dir="/a") == job_name("axpo_8b", run_dir="/a")


@given(st.text(max_size=80))
def test_every_name_becomes_one(name):
    found = job_name(name, run_dir="/nfs/a")
    assert is_job_name(found)
    # A pod's label of a StatefulSet is NAME-servers-HASH, of ten digits at most.
    assert len(f"{found}-servers-{'0' * 10}") <= 63 and len(found) <= MAX_NAME
