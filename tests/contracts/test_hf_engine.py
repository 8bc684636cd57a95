"""The embedded engine: the shared contract, then what only it promises (sharing, bounds, failures of a step)."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref

import pytest
import torch
from engine_suite import EngineContract, run, text
from tiny_engine_model import IM_END, TOOL_CALL, FakeImageStore, reference_logprobs, request, tiny_config, tiny_model

from nemo_axpo.engines.base import EngineError
from nemo_axpo.engines.hf.engine import HfEngine
from nemo_axpo.engines.registry import create_engine
from nemo_axpo.types import GenerationRequest, RenderedTokens


def make_hf_engine(config, store: FakeImageStore, **options) -> HfEngine:
    return HfEngine(config, image_store=store, **options)


class TestHfEngine(EngineContract):
    @pytest.fixture
    def make_engine(self):
        return make_hf_engine

    @pytest.mark.parametrize("tied,attention_bias", [(True, False), (False, True)])
    def test_other_geometries(self, make_engine, store, tied, attention_bias):
        config = tiny_config(tied=tied, attention_bias=attention_bias, hidden=48)
        model = tiny_model(config)
        engine = self.build(make_engine, config, model, store)
        requests = [request(store.render(*range(9), "i1", 7), seed=seed) for seed in range(3)]
        self.assert_parity(requests, run(engine, *requests), model=model, store=store)

    def test_samples_of_one_prompt_prefill_it_once(self, make_engine, config, model, store):
        prompt = store.render(*text(random.Random(0), 20), "i0", 1, 2)
        length = len(prompt.token_ids)
        engine = self.build(make_engine, config, model, store)
        run(engine, *(request(prompt, seed=seed) for seed in range(8)))
        statistics = engine.statistics
        # one request computes all; the other seven copy all but the last token
        assert statistics.num_prefill_tokens == length + 7
        assert statistics.num_reused_tokens == 7 * (length - 1)
        assert statistics.num_encoded_images == 1

    def test_a_common_beginning_is_computed_once(self, make_engine, config, model, store):
        rng = random.Random(1)
        system, tails = text(rng, 20), [[i, *text(rng, 4 + i)] for i in range(4)]
        engine = self.build(make_engine, config, model, store)
        requests = [request(store.render(*system, *tail), seed=i) for i, tail in enumerate(tails)]
        self.assert_parity(requests, run(engine, *requests), model=model, store=store)
        assert engine.statistics.num_prefill_tokens == 20 + sum(map(len, tails))

    def test_the_next_turn_goes_on_in_place(self, make_engine, config, model, store):
        rng = random.Random(2)
        engine = self.build(make_engine, config, model, store, max_num_seqs=4, max_parked_seqs=0)
        first = [request(store.render(*text(rng, 15)), seed=i, max_new_tokens=5 + i) for i in range(4)]
        completions = run(engine, *first)
        computed = engine.statistics.num_prefill_tokens
        rows = [one.prompt + RenderedTokens(c.token_ids) + store.render(3, 4, 5) for one, c in zip(first, completions)]
        second = [request(row, seed=9) for row in reversed(rows)]
        self.assert_parity(second, run(engine, *second), model=model, store=store)
        # the newest sampled token and the three of the observation
        assert engine.statistics.num_prefill_tokens - computed == 4 * 4

    def test_continuations_reuse_the_source_row(self, make_engine, config, model, store):
        engine = self.build(make_engine, config, model, store)
        source = request(store.render(*text(random.Random(3), 12), "i3", 4), max_new_tokens=30)
        completion = run(engine, source)[0]
        cut = source.prompt + RenderedTokens(completion.token_ids[:9])
        computed = engine.statistics.num_prefill_tokens
        requests = [request(cut, seed=seed) for seed in range(6)]
        self.assert_parity(requests, run(engine, *requests), model=model, store=store)
        assert engine.statistics.num_prefill_tokens - computed == 6
        whole = request(source.prompt + RenderedTokens((*completion.token_ids, TOOL_CALL)), seed=5)
        computed = engine.statistics.num_prefill_tokens
        self.assert_parity([whole], run(engine, whole), model=model, store=store)
        assert engine.statistics.num_prefill_tokens - computed == 2  # the last sampled token was never fed

    def test_another_image_is_another_prefix(self, make_engine, config, model, store):
        engine = self.build(make_engine, config, model, store)
        shared_text = text(random.Random(4), 12)
        store.add("same_size", height=4, width=4)
        requests = [request(store.render(*shared_text, image, 1, 2, 3)) for image in ("i0", "same_size", "i0")]
        for one in requests:
            self.assert_parity([one], run(engine, one), model=model, store=store)
        assert engine.statistics.num_reused_tokens == 13 + (12 + 1 + 4 + 1 + 2)  # up to vision_start; all but the last

    @pytest.mark.parametrize("max_num_seqs,max_parked_seqs", [(1, 0), (2, 0), (3, 1), (8, 30)])
    def test_sharing_changes_no_token(self, make_engine, config, model, store, max_num_seqs, max_parked_seqs):
        rng = random.Random(5)
        prompts = [store.render(*text(rng, 10 + i), f"i{i}", *text(rng, 2 + i)) for i in range(4)]

        def two_turns(engine: HfEngine) -> list:
            first = [request(prompts[i // 4], seed=i, max_new_tokens=4 + i % 9) for i in range(16)]
            done = run(engine, *first)
            rows = [one.prompt + RenderedTokens(c.token_ids) + store.render(1, "i4", 2) for one, c in zip(first, done)]
            cuts = [one.prompt + RenderedTokens(c.token_ids[:4]) for one, c in zip(first, done)]
            second = [request(row, seed=50 + i) for i, row in enumerate([*rows, *cuts[:4], *cuts[:4]])]
            done_again = run(engine, *second)
            self.assert_parity(second, done_again, model=model, store=store)
            return [c.token_ids for c in (*done, *done_again)]

        sharing = self.build(
            make_engine, config, model, store, max_num_seqs=max_num_seqs, max_parked_seqs=max_parked_seqs
        )
        alone = self.build(make_engine, config, model, store, share_prefixes=False)
        assert two_turns(sharing) == two_turns(alone)
        assert sharing.statistics.num_reused_tokens > 0
        assert alone.statistics.num_reused_tokens == 0

    def test_a_long_prompt_is_prefilled_in_pieces(self, make_engine, config, model, store):
        rng = random.Random(6)
        engine = self.build(make_engine, config, model, store, max_model_len=1200)
        lengths = (1100, 1090, 640, 40)
        requests = [
            request(store.render(*text(rng, 500), "i3", *text(rng, length - 500)) if length > 500
                    else store.render(*text(rng, length)), seed=length) for length in lengths
        ]  # fmt: skip
        self.assert_parity(requests, run(engine, *requests), model=model, store=store)

    def test_every_prompt_token_is_counted_once(self, make_engine, config, model, store):
        rng = random.Random(7)
        engine = self.build(make_engine, config, model, store)
        shared = text(rng, 12)
        requests = [request(store.render(*shared, *text(rng, 1 + i % 5)), seed=i, max_new_tokens=3) for i in range(40)]
        completions = run(engine, *requests)
        statistics = engine.statistics
        served = sum(len(one.prompt.token_ids) for one in requests)
        assert statistics.num_prefill_tokens + statistics.num_reused_tokens == served
        assert statistics.num_generated_tokens == sum(len(c.token_ids) for c in completions)

    def test_a_failing_step_reaches_every_waiter(self, make_engine, config, model, store, monkeypatch):
        engine = self.build(make_engine, config, model, store)
        requests = [request(store.render(*range(12), seed), seed=seed, max_new_tokens=30) for seed in range(20)]

        async def all_fail() -> list:
            return await asyncio.gather(*(engine.generate(one) for one in requests), return_exceptions=True)

        with monkeypatch.context() as patch:
            patch.setattr("nemo_axpo.engines.hf.scheduler.sample", lambda *_, **__: 1 / 0)
            outcomes = asyncio.run(asyncio.wait_for(all_fail(), timeout=30))
        assert {type(outcome) for outcome in outcomes} == {EngineError}
        assert "ZeroDivisionError" in str(outcomes[0])
        self.assert_parity(requests, run(engine, *requests), model=model, store=store)

    def test_an_abandoned_event_loop_leaves_nothing_behind(self, make_engine, config, model, store):
        engine = self.build(make_engine, config, model, store)
        requests = [request(store.render(*range(12), seed), seed=seed, max_new_tokens=100) for seed in range(20)]

        async def give_up() -> None:
            await asyncio.wait_for(asyncio.gather(*(engine.generate(one) for one in requests)), timeout=0.01)

        with pytest.raises(TimeoutError):
            asyncio.run(give_up())
        self.assert_parity(requests[:9], run(engine, *requests[:9]), model=model, store=store)

    def test_a_stopped_event_loop_leaves_nothing_behind(self, make_engine, config, model, store):
        engine = self.build(make_engine, config, model, store)
        loop = asyncio.new_event_loop()
        task = loop.create_task(engine.generate(request(store.render(1, 2, 3), max_new_tokens=100)))
        loop.run_until_complete(asyncio.sleep(0.01))
        task._log_destroy_pending = False
        loop.close()
        one = request(store.render(*range(12)))
        self.assert_parity([one], run(engine, one), model=model, store=store)

    def test_close_frees_the_memory(self, make_engine, config, model, store):
        engine = self.build(make_engine, config, model, store)
        run(engine, request(store.render(*range(12), "i0", 1)))
        tensors = [weakref.ref(engine._cache._kv), weakref.ref(engine._loader._destinations["lm_head.weight"].target)]
        asyncio.run(engine.close())
        gc.collect()
        assert [tensor() for tensor in tensors] == [None, None]
        assert engine.statistics.num_encoded_images == 1

    def test_diverged_weights_are_named_and_leave_no_trace(self, make_engine, config, model, store):
        engine = self.build(make_engine, config, model, store)
        one = request(store.render(*range(12)))
        broken = {name: tensor * float("nan") for name, tensor in model.state_dict().items()}
        engine.load_weights(broken.items(), policy_version=4)
        with pytest.raises(EngineError, match="diverged"):
            run(engine, one)
        engine.load_weights(model.state_dict().items(), policy_version=5)
        self.assert_parity([one], run(engine, one), model=model, store=store)

    def test_bfloat16_stays_near(self, make_engine, config, model, store):
        engine = self.build(make_engine, config, model, store, dtype=torch.bfloat16)
        requests = [request(store.render(*range(9), "i0", 7), seed=seed) for seed in range(4)]
        for one, completion in zip(requests, run(engine, *requests)):
            expected = reference_logprobs(model, one.prompt, completion, store=store)
            difference = (torch.tensor(completion.logprobs) - expected).abs()
            assert 0 < difference.max() < 0.5


class TestRegistry:
    def options(self) -> dict:
        return {
            "hf_config": tiny_config(), "checkpoint": "unused", "image_store": FakeImageStore(), "stop_token_ids": [IM_END],
            "banned_token_ids": [], "max_num_seqs": 2, "max_model_len": 32,
        }  # fmt: skip

    def test_hf(self):
        engine = create_engine("hf", **self.options())
        assert isinstance(engine, HfEngine)
        with pytest.raises(EngineError, match="load_weights"):
            asyncio.run(engine.generate(_any_request()))

    def test_unknown_name(self):
        with pytest.raises(ValueError, match="one of hf, vllm, vllm_server, trtllm; got 'sglang'"):
            create_engine("sglang", **self.options())

    @pytest.mark.parametrize(
        "wrong,message",
        [
            ({"max_num_seqs": 0}, "max_num_seqs must be at least 1, got 0"),
            ({"max_model_len": 4096}, r"max_model_len must lie in \[2, 2048\].*4096"),
            ({"banned_token_ids": [160]}, r"banned_token_ids must lie in \[0, 160\).*160"),
        ],
    )
    def test_impossible_limits(self, wrong, message):
        with pytest.raises(ValueError, match=message):
            create_engine("hf", **(self.options() | wrong))


def _any_request() -> GenerationRequest:
    return request(RenderedTokens((1, 2)))
