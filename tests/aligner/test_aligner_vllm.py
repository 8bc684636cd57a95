"""NeMo-Aligner's ``fit`` on two gloo ranks with rollouts from real vLLM servers, which run in an environment of their own.

The two environments have different versions of transformers: 4.57, as NeMo limits it, and 5. What holds them together is
checked here: equal prompts on every request, equal log-probs of what was sampled, pictures returned by tools included.

    launcher_scripts/test_aligner.sh --vllm
"""

from __future__ import annotations

import subprocess

import pytest
from safetensors.torch import load_file
from tiny_runs import AXPO, RUN, evaluation, metrics, run_ranks, trees
from vllm_server_process import SERVED_MODEL, VllmServerProcess

pytestmark = pytest.mark.nemo

MAX_ROW_TOKENS = 512
SETTINGS = (
    *RUN, *AXPO, "loop=aligner", "engine=vllm_server", f"engine.served_model={SERVED_MODEL}", "train.checkpoint_every=2",
    f"engine.max_model_len={MAX_ROW_TOKENS}", f"rollout.max_row_tokens={MAX_ROW_TOKENS}",
)  # fmt: skip
TOLERANCE = 2e-5
"""Nats between what a server sampled and the trainer, in float32."""


@pytest.fixture(scope="module")
def servers(vllm_python, served_checkpoint, tmp_path_factory):
    """URLs of two."""
    logs = tmp_path_factory.mktemp("logs")

    def server(number):
        return VllmServerProcess(
            served_checkpoint, log=logs / f"{number}.log", max_model_len=MAX_ROW_TOKENS, python=vllm_python
        )

    with server(0) as first, server(1) as second:
        for each in (first, second):
            each.wait_until_up()
        yield first.url, second.url


def train(run, checkpoint, urls, *settings):
    listed = ",".join(f"'{url}'" for url in urls)
    servers = f"engine.servers=[{listed}]"
    return run_ranks(2, "train", "--output-dir", run, f"model.path={checkpoint}", *SETTINGS, servers, *settings)


@pytest.fixture(scope="module")
def study(servers, served_checkpoint, tmp_path_factory):
    """Two steps on a server per replica; resumed, two more on one server that both share."""
    run = tmp_path_factory.mktemp("study") / "run"
    for urls, settings in ((servers, ("train.num_steps=2",)), (servers[:1], ("--resume", "train.num_steps=4"))):
        done = train(run, served_checkpoint, urls, *settings)
        assert done.returncode == 0, done.stderr[-20_000:]
    return run


def test_the_environments_have_different_versions_of_transformers(vllm_python):
    import transformers

    code = "import transformers; print(transformers.__version__)"
    theirs = subprocess.run([vllm_python, "-c", code], capture_output=True, text=True, check=True).stdout
    assert transformers.__version__.startswith("4.57.") and theirs.startswith("5.")


def test_every_step_samples_calls_tools_resamples_and_trains(study):
    rows = metrics(study)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["rollout/tool_use"] > 0 and row["tool/image_zoom_in_errors"] < 1 for row in rows)
    assert sum(row["rollout/num_resamples"] for row in rows) > 0, "some question must be triggered"
    assert all(row["update/grad_norm"] > 0 for row in rows)
    assert ["eval/pass@1" in row for row in rows] == [False, True, False, True]
    assert {"initial", "final"} == evaluation(study).keys()
    assert (study / "hf" / "model.safetensors").is_file()


def test_a_tools_picture_is_among_what_is_trained(study):
    """In an ordinary rollout and in a continuation."""
    found = {"rollouts": 0, "resamples": 0}
    for step in (1, 2, 3, 4):
        for tree in trees(study, step):
            for kind in found:
                observed = [s for row in tree[kind] for s in row["segments"] if s["kind"] == "observation"]
                found[kind] += sum("<|image_pad|>" in segment["text"] for segment in observed)
    assert all(found.values()), found


def test_servers_and_trainer_agree_on_every_token(study):
    """A step trains on what servers sampled with the weights of the step before: stale ones would show here."""
    for row in metrics(study):
        assert row["engine/logprob_diff_max"] < TOLERANCE
        assert (row["engine/prompt_mismatches"], row["engine/lost"], row["engine/retries"]) == (0, 0, 0)
        assert row["engine/requests"] >= row["rollout/num_rollouts"] + row["rollout/num_resamples"]


def test_every_update_is_pushed_and_proven(study, served_checkpoint):
    """A process's first transfer brings weights, not an update: it is not proven."""
    rows = metrics(study)
    assert all(row["sync/bytes"] > 0 for row in rows)
    assert [row["step"] for row in rows if row.get("sync/proof", 1) < TOLERANCE] == [2, 4]
    before, after = (load_file(path / "model.safetensors") for path in (served_checkpoint, study / "hf"))
    assert any((after[name] != tensor).any() for name, tensor in before.items())


def test_a_server_for_each_replica_then_one_for_both(study):
    rows = metrics(study)
    assert [(row["engine/servers"], row["engine/servers_up"]) for row in rows] == [(2, 2), (2, 2), (1, 1), (1, 1)]
    assert rows[0]["sync/bytes"] == 2 * rows[2]["sync/bytes"], "one replica pushes to a shared server"
