"""vLLM in this process: the shared contract, and what only it promises. Runs in its own environment (test_vllm.sh).

Where there is a GPU it computes in bfloat16 there, which was not yet run.
"""

from __future__ import annotations

import random

import pytest
import torch
from engine_suite import MAX_MODEL_LEN, EngineContract, run, text
from served_checkpoint import write_checkpoint_files
from tiny_engine_model import request, tiny_config, tiny_model

from nemo_axpo.engines.base import EngineError
from nemo_axpo.models.qwen3_vl.hf_model import LM_HEAD

pytestmark = pytest.mark.vllm

HAS_GPU = torch.cuda.is_available()
DEVICE = {"device": "cuda", "dtype": "bfloat16"} if HAS_GPU else {"device": "cpu", "dtype": "float32"}
HEAD_DIM = 64 if HAS_GPU else 32
"""The smallest of vLLM's attention kernels."""
BF16_TOLERANCE = 0.1


@pytest.fixture
def make_vllm_engine(tmp_path):
    from nemo_axpo.engines.vllm.engine import VllmEngine
    from nemo_axpo.engines.vllm.settings import VllmSettings

    def make(config, store, *, max_num_batched_tokens=None, **options):
        write_checkpoint_files(tmp_path, config=config)
        settings = VllmSettings(kv_cache_mib=64, max_num_batched_tokens=max_num_batched_tokens)
        return VllmEngine(config, checkpoint=tmp_path, image_store=store, settings=settings, **DEVICE, **options)

    return make


class TestVllmEngine(EngineContract):
    tolerance = BF16_TOLERANCE if HAS_GPU else EngineContract.tolerance

    @pytest.fixture
    def config(self):
        return tiny_config(head_dim=HEAD_DIM)

    @pytest.fixture
    def make_engine(self, make_vllm_engine):
        return make_vllm_engine

    def test_a_tied_output_projection_is_updated(self, make_engine, store):
        config = tiny_config(tied=True, head_dim=HEAD_DIM)
        engine = self.build(make_engine, config, tiny_model(config), store)
        other = tiny_model(config, seed=1)
        tensors = {name: tensor for name, tensor in other.state_dict().items() if name != LM_HEAD}
        engine.load_weights(tensors.items(), policy_version=4)
        requests = [request(store.render(*range(9), "i1", 7), seed=seed) for seed in range(3)]
        self.assert_parity(requests, run(engine, *requests), model=other, store=store)

    def test_more_prompt_tokens_than_a_step_takes(self, make_engine, config, model, store):
        engine = self.build(make_engine, config, model, store, max_num_batched_tokens=MAX_MODEL_LEN)
        rng = random.Random(0)
        requests = [request(store.render(*text(rng, 100)), seed=seed) for seed in range(8)]
        self.assert_parity(requests, run(engine, *requests), model=model, store=store)

    def test_a_step_that_fails_reaches_every_waiter_and_ends_there(self, engine, store, monkeypatch):
        requests = [request(store.render(1, 2, seed), seed=seed) for seed in range(3)]

        def fail():
            raise RuntimeError("out of memory")

        monkeypatch.setattr(engine._core, "step", fail)
        for one in requests:
            with pytest.raises(EngineError, match="vLLM failed while sampling: RuntimeError: out of memory"):
                run(engine, one)
        monkeypatch.undo()
        assert [len(completion.token_ids) for completion in run(engine, *requests)] == [8, 8, 8]
