"""Requests to vLLM's servers, their responses, and the command line that starts one; no vLLM is needed."""

from __future__ import annotations

import pytest

from nemo_axpo.engines.base import EngineError
from nemo_axpo.engines.fleet.client import ServedPolicy
from nemo_axpo.engines.vllm.sampling import vllm_seed
from nemo_axpo.engines.vllm.settings import VllmSettings, engine_arguments
from nemo_axpo.engines.vllm_server.launch import server_command
from nemo_axpo.engines.vllm_server.wire import Dialect, completion, policy_version
from nemo_axpo.types import Completion, GenerationRequest, RenderedTokens, SamplingParams

IMAGE = 9


class Urls:
    def url(self, image_id):
        return f"data:{image_id}"


def test_a_request_has_one_placeholder_per_picture_and_the_pictures_in_order():
    dialect = Dialect(ServedPolicy(Urls(), IMAGE, stop_token_ids={5, 3}, banned_token_ids=(IMAGE, 7)))
    prompt = RenderedTokens((1, IMAGE, IMAGE, 2, IMAGE, IMAGE, 4), ("b", "a"))
    body = dialect.body(GenerationRequest("q/0/t0", prompt, SamplingParams(6, 0.7, 0.9, 20, 1.5), seed=2**63 + 11))
    assert body == {
        "token_ids": [1, IMAGE, 2, IMAGE, 4],
        "return_token_ids": True,
        "content_parts": [
            {"type": "image_url", "url": "data:b", "uuid": "b"},
            {"type": "image_url", "url": "data:a", "uuid": "a"},
        ],
        "sampling_params": {
            "max_tokens": 6, "temperature": 0.7, "top_p": 0.9, "top_k": 20, "presence_penalty": 1.5,
            "seed": 11, "logprobs": 0,
            "logit_bias": {"7": -100.0, "9": -100.0}, "stop_token_ids": [3, 5], "ignore_eos": True, "detokenize": False,
        },
    }  # fmt: skip


def test_a_request_without_pictures():
    dialect = Dialect(ServedPolicy(Urls(), IMAGE, stop_token_ids=(3,), banned_token_ids=()))
    body = dialect.body(GenerationRequest("q/0/t0", RenderedTokens((1, 2)), SamplingParams(1), seed=0))
    assert "content_parts" not in body and body["sampling_params"]["logit_bias"] is None


def choice(**changes):
    content = [{"logprob": -0.5}, {"logprob": -0.25}]
    spans = [{"version": "12", "start": 0, "end": 2}]
    whole = {"token_ids": [4, 5], "logprobs": {"content": content}, "finish_reason": "stop", "weight_versions": spans}
    return {"choices": [whole | changes]}


def test_a_completion():
    assert completion(choice()) == Completion((4, 5), (-0.5, -0.25), "stop", 12)
    assert completion(choice(finish_reason="abort")).finish_reason == "aborted"


@pytest.mark.parametrize("changes", [{"logprobs": None}, {"token_ids": [4]}, {"token_ids": None}])
def test_a_response_that_lacks_something(changes):
    with pytest.raises(EngineError, match="a choice must hold token_ids, their logprobs.*use vLLM 0.32"):
        completion(choice(**changes))


@pytest.mark.parametrize(
    ("versions", "expected"),
    [(["7"], 7), (["7", "7"], 7), (["7", "8"], -1), (["updating"], -1), (["default"], -1), ([], -1)],
)
def test_versions_of_a_completion(versions, expected):
    assert policy_version([{"version": version, "start": 0, "end": 1} for version in versions]) == expected


def test_a_server_gets_every_argument():
    arguments = engine_arguments(
        VllmSettings(kv_cache_mib=2), checkpoint="dir", max_num_seqs=3, max_model_len=50, dtype="float32", device="cpu"
    )
    command = server_command(arguments, host="h", port=1, extra=["--seed", "5"])
    line = " ".join(command[1:])
    assert line.startswith("-m vllm.entrypoints.openai.api_server --host h --port 1 --model dir --load-format dummy")
    for part in (
        "--kv-cache-memory-bytes 2097152", "--enforce-eager", "--no-enable-chunked-prefill", "--no-async-scheduling", "--mm-processor-cache-gb 0",
        "--logprobs-mode processed_logprobs", "--generation-config vllm", "--enable-prefix-caching",
        '--limit-mm-per-prompt {"image": 1024, "video": 0}', "--block-size 32",
        "--worker-extension-cls nemo_axpo.engines.vllm.worker_extension.PolicyWeights",
    ):  # fmt: skip
        assert part in line
    assert "--max-num-batched-tokens" not in line and line.endswith("--enable-scale-out --seed 5")


def test_on_a_gpu_memory_and_graphs_are_the_users_choice():
    options = {"checkpoint": "dir", "max_num_seqs": 3, "max_model_len": 50, "dtype": "bfloat16", "device": "cuda"}
    arguments = engine_arguments(VllmSettings(gpu_memory_utilization=0.3), **options)
    assert arguments["gpu_memory_utilization"] == 0.3 and arguments["kv_cache_memory_bytes"] is None
    assert arguments["enforce_eager"] is False and arguments["block_size"] is None


def test_seeds_fit_a_signed_number():
    assert [vllm_seed(seed) for seed in (0, 2**63 - 1, 2**63, 2**64 - 1)] == [0, 2**63 - 1, 0, 2**63 - 1]
