"""The contract of every generation engine; a subclass provides ``make_engine`` and inherits the tests.

    class TestMyEngine(EngineContract):
        @pytest.fixture
        def make_engine(self): return lambda config, store, **options: MyEngine(config, image_store=store, **options)

Log-probs are compared with the Hugging Face module's full forward in float32; tolerance 2e-5.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tiny_engine_model import (
    BANNED,
    IM_END,
    IMAGE,
    TOOL_CALL,
    VIDEO,
    VOCAB_SIZE,
    FakeImageStore,
    reference_logprobs,
    request,
    tiny_config,
    tiny_model,
)

from nemo_axpo.engines.base import Engine, EngineError
from nemo_axpo.types import Completion, GenerationRequest, RenderedTokens

TOLERANCE = 2e-5
MAX_MODEL_LEN = 160


def text(rng: random.Random, num_tokens: int) -> list[int]:
    """Ordinary token ids."""
    return [rng.randrange(0, 150) for _ in range(num_tokens)]


async def serve(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Completion]:
    """All requests at once."""
    return await asyncio.gather(*(engine.generate(one) for one in requests))


def run(engine: Engine, *requests: GenerationRequest) -> list[Completion]:
    """All requests at once, from synchronous code."""
    return asyncio.run(serve(engine, requests))


class EngineContract:
    """What the rollouts rely on."""

    tolerance = TOLERANCE
    """Of log-probs, in nats; engines that compute in bfloat16 have their own."""

    @pytest.fixture
    def config(self):
        return tiny_config()

    @pytest.fixture
    def model(self, config):
        return tiny_model(config)

    @pytest.fixture
    def store(self):
        store = FakeImageStore()
        for number, (height, width) in enumerate([(4, 4), (2, 6), (6, 2), (4, 8), (2, 2)]):
            store.add(f"i{number}", height=height, width=width)
        return store

    @pytest.fixture
    def engine(self, make_engine, config, model, store):
        return self.build(make_engine, config, model, store)

    def build(self, make_engine, config, model, store, *, stop=(IM_END,), banned=BANNED, **options) -> Engine:
        """An engine that holds the model's weights, policy version 3."""
        options = {"max_num_seqs": 8, "max_model_len": MAX_MODEL_LEN} | options
        engine = make_engine(config, store, stop_token_ids=stop, banned_token_ids=banned, **options)
        engine.load_weights(model.state_dict().items(), policy_version=3)
        return engine

    def assert_parity(self, requests, completions, *, model, store, banned=BANNED) -> None:
        """Every completion's log-probs equal the full forward's."""
        for one, completion in zip(requests, completions, strict=True):
            expected = reference_logprobs(
                model,
                one.prompt,
                completion,
                store=store,
                temperature=one.sampling.temperature or 1.0,
                presence_penalty=one.sampling.presence_penalty,
                banned=banned,
            )
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=self.tolerance, rtol=0)

    def test_protocol(self, engine):
        assert isinstance(engine, Engine)
        assert engine.policy_version == 3

    @pytest.mark.parametrize(
        "layout",
        [(0,), (1, "i0"), (1, "i1", 2), (1, "i0", "i1", 2, "i2", 3), (1, "i3", 2, "i3", 3), ("i4", 1)],
        ids=["text", "image_last", "one_image", "three_images", "same_image_twice", "image_first"],
    )
    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    def test_logprobs_equal_the_full_forward(self, engine, model, store, layout, temperature):
        rng = random.Random(0)
        pieces = [piece for part in layout for piece in ([part] if isinstance(part, str) else text(rng, 3 + part))]
        requests = [request(store.render(*pieces), seed=seed, temperature=temperature) for seed in range(3)]
        self.assert_parity(requests, run(engine, *requests), model=model, store=store)

    def test_image_in_a_later_turn(self, engine, model, store):
        rng = random.Random(1)
        first = [request(store.render(*text(rng, 9), "i0", *text(rng, 4)), seed=seed) for seed in range(4)]
        rows = [one.prompt + RenderedTokens(c.token_ids) for one, c in zip(first, run(engine, *first))]
        deltas = [store.render(*text(rng, 3), f"i{seed}", *text(rng, 2 + seed)) for seed in range(4)]
        second = [request(row + delta, seed=9) for row, delta in zip(rows, deltas)]
        completions = run(engine, *second)
        self.assert_parity(second, completions, model=model, store=store)
        rows = [one.prompt + RenderedTokens((*c.token_ids, 7, 8)) for one, c in zip(second, completions)]
        third = [request(row, seed=10) for row in rows]
        self.assert_parity(third, run(engine, *third), model=model, store=store)

    def test_continuations_of_a_thinking_prefix(self, engine, model, store):
        rng = random.Random(2)
        source = request(store.render(*text(rng, 10), "i3", *text(rng, 3)), max_new_tokens=20)
        thinking = run(engine, source)[0].token_ids[:7]
        prefix = source.prompt + RenderedTokens((*thinking, TOOL_CALL))
        requests = [request(prefix, seed=seed, max_new_tokens=12) for seed in range(5)]
        completions = run(engine, *requests)
        self.assert_parity(requests, completions, model=model, store=store)
        assert len({c.token_ids for c in completions}) > 1

    def test_samples_of_one_prefix_follow_their_seeds(self, engine, store):
        prompt = store.render(*text(random.Random(3), 12), "i0", 5)
        first = run(engine, *(request(prompt, seed=seed) for seed in (1, 2, 1)))
        assert first[0].token_ids == first[2].token_ids != first[1].token_ids

    def test_seeds_do_not_depend_on_batch_mates(self, engine, store):
        rng = random.Random(4)
        probe = request(store.render(*text(rng, 14), "i1", *text(rng, 6)), seed=77, max_new_tokens=20)
        alone = run(engine, probe)[0]
        for number in range(3):
            mates = [
                request(store.render(*text(rng, rng.randrange(1, 40))), seed=i, max_new_tokens=9) for i in range(11)
            ]
            mates.insert(4 * number, probe)
            assert run(engine, *mates)[4 * number].token_ids == alone.token_ids

    def test_length_limit(self, engine, store):
        completion = run(engine, request(store.render(1, 2, 3), max_new_tokens=1))[0]
        assert (len(completion.token_ids), completion.finish_reason, completion.policy_version) == (1, "length", 3)

    def test_stop_token_is_kept_and_ends_the_completion(self, make_engine, config, model, store):
        stop = range(0, 150, 4)
        engine = self.build(make_engine, config, model, store, stop=stop)
        requests = [request(store.render(1, 2, seed), seed=seed, max_new_tokens=60) for seed in range(20)]
        for completion in run(engine, *requests):
            assert completion.finish_reason == "stop"
            *before, last = [token in stop for token in completion.token_ids]
            assert last and not any(before)

    def test_greedy(self, engine, model, store):
        prompt = store.render(3, 1, 4, 1, 5, "i0", 9)
        completions = run(engine, *(request(prompt, seed=seed, temperature=0.0, top_k=3) for seed in range(2)))
        assert completions[0].token_ids == completions[1].token_ids
        self.assert_parity([request(prompt)], completions[:1], model=model, store=store)
        others = run(engine, *(request(prompt, seed=seed, max_new_tokens=1) for seed in range(30)))
        assert completions[0].logprobs[0] >= max(c.logprobs[0] for c in others) - self.tolerance

    def test_top_k_and_top_p_renormalise(self, engine, store):
        prompt = store.render(*text(random.Random(5), 6))
        greedy = run(engine, request(prompt, temperature=0.0, max_new_tokens=1))[0]
        for filters in ({"top_k": 1}, {"top_p": 1e-6}):
            only = run(engine, request(prompt, seed=4, max_new_tokens=1, **filters))[0]
            assert only.token_ids == greedy.token_ids
            assert only.logprobs[0] == pytest.approx(0.0, abs=1e-6)
        sampled = run(engine, *(request(prompt, seed=seed, max_new_tokens=1, top_k=3) for seed in range(64)))
        probabilities = {c.token_ids[0]: c.logprobs[0] for c in sampled}
        assert len(probabilities) == 3
        assert torch.tensor(list(probabilities.values())).exp().sum().item() == pytest.approx(1.0, abs=1e-5)

    def test_presence_penalty_counts_sampled_tokens_alone(self, engine, model, store):
        """Neighbours with and without it, of different ages; a token of the prompt is not penalised."""
        rng = random.Random(7)
        requests = [
            request(store.render(*text(rng, 5), "i0", 2), seed=seed, max_new_tokens=9 + seed, presence_penalty=penalty)
            for seed, penalty in enumerate((1.5, 0.0, -0.5))
        ]
        self.assert_parity(requests, run(engine, *requests), model=model, store=store)
        most = [request(store.render(*text(rng, 4)), seed=s, temperature=0.5, presence_penalty=2.0) for s in range(4)]
        self.assert_parity(most, run(engine, *most), model=model, store=store)

    def test_sampled_frequencies_follow_the_logprobs(self, engine, model, store):
        requests = [request(store.render(8, 6, 7, 5, 3), seed=seed, max_new_tokens=1) for seed in range(800)]
        completions = run(engine, *requests)
        logprobs = {c.token_ids[0]: c.logprobs[0] for c in completions}
        counts = torch.tensor([sum(c.token_ids[0] == token for c in completions) for token in logprobs])
        expected = 800 * torch.tensor(list(logprobs.values())).exp()
        assert ((counts - expected).abs() <= 4.5 * expected.sqrt() + 1).all()

    def test_banned_ids_are_never_sampled(self, make_engine, config, model, store):
        banned = tuple(token for token in range(VOCAB_SIZE) if token not in (11, 12, 13))
        engine = self.build(make_engine, config, model, store, banned=banned)
        requests = [request(store.render(1, "i0", 2), seed=s, max_new_tokens=20, temperature=s % 2) for s in range(8)]
        completions = run(engine, *requests)
        assert {token for c in completions for token in c.token_ids} <= {11, 12, 13}
        self.assert_parity(requests, completions, model=model, store=store, banned=banned)

    def test_new_weights_replace_every_cache(self, engine, config, model, store):
        rng = random.Random(6)
        prompt = store.render(*text(rng, 12), "i0", *text(rng, 3))
        requests = [request(prompt, seed=seed) for seed in range(3)]
        before = run(engine, *requests)
        other = tiny_model(config, seed=1)
        engine.load_weights(other.state_dict().items(), policy_version=4)
        after = run(engine, *requests)
        assert after != before
        assert {c.policy_version for c in after} == {4}
        self.assert_parity(requests, after, model=other, store=store)
        engine.load_weights(model.state_dict().items(), policy_version=5)
        assert [c.token_ids for c in run(engine, *requests)] == [c.token_ids for c in before]

    def test_weights_that_do_not_fit_are_refused(self, engine, model, store):
        tensors = dict(model.state_dict())
        name = "model.language_model.layers.1.mlp.up_proj.weight"
        cases = [
            ({key: value for key, value in tensors.items() if key != name}, "missing.*up_proj"),
            (tensors | {name: torch.zeros(2, 3)}, "up_proj.*shape"),
            (tensors | {"model.language_model.extra": torch.zeros(1)}, "extra.*belong"),
        ]
        good = request(store.render(1, "i0", 2))
        for seed, (wrong, message) in enumerate(cases, start=1):
            with pytest.raises(ValueError, match=message):
                engine.load_weights(wrong.items(), policy_version=9)
            with pytest.raises(EngineError, match="load_weights"):
                run(engine, good)
            other = tiny_model(model.config, seed=seed)
            engine.load_weights(other.state_dict().items(), policy_version=9 + seed)
            completions = run(engine, good)
            assert completions[0].policy_version == 9 + seed
            self.assert_parity([good], completions, model=other, store=store)

    def test_cancelled_requests_free_their_place(self, engine, model, store):
        rng = random.Random(7)
        kept = [request(store.render(*text(rng, 10), "i0", 3), seed=seed, max_new_tokens=12) for seed in range(6)]
        dropped = [request(store.render(*text(rng, 10)), seed=9, max_new_tokens=140) for _ in range(10)]

        async def cancel_midway() -> list[Completion]:
            doomed = [asyncio.create_task(engine.generate(one)) for one in dropped]
            tasks = [asyncio.create_task(engine.generate(one)) for one in kept]
            for number, task in enumerate(doomed):
                await asyncio.sleep(0 if number % 2 else 0.005)
                task.cancel()
            completions = await asyncio.gather(*tasks)
            outcomes = await asyncio.gather(*doomed, return_exceptions=True)
            assert any(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
            for outcome in outcomes:  # one that met its stop token before it was cancelled has ended
                assert isinstance(outcome, asyncio.CancelledError) or outcome.finish_reason == "stop"
            return completions

        completions = asyncio.run(asyncio.wait_for(cancel_midway(), timeout=60))
        self.assert_parity(kept, completions, model=model, store=store)
        assert [c.token_ids for c in run(engine, *kept)] == [c.token_ids for c in completions]

    def test_two_hundred_ragged_requests(self, engine, model, store):
        rng = random.Random(8)
        shared = text(rng, 10)
        requests = []
        for seed in range(200):
            head = shared if seed % 3 else text(rng, rng.randrange(1, 6))
            pieces = [*head, *([f"i{rng.randrange(5)}"] if seed % 2 else []), *text(rng, rng.randrange(1, 30))]
            requests.append(request(store.render(*pieces), seed=seed, max_new_tokens=rng.randrange(1, 24)))
        completions = run(engine, *requests)
        assert [c.finish_reason == "stop" or len(c.token_ids) == r.sampling.max_new_tokens
                for r, c in zip(requests, completions)] == [True] * 200  # fmt: skip
        self.assert_parity(requests[::5], completions[::5], model=model, store=store)

    def test_bad_requests_harm_no_other(self, engine, model, store):
        good = [request(store.render(*text(random.Random(9), 9), "i0", 4), seed=seed) for seed in range(3)]
        image = store.render(1, "i0", 2)
        bad = {
            "max_model_len 160": request(store.render(1), max_new_tokens=MAX_MODEL_LEN),
            "max_new_tokens": request(store.render(1), max_new_tokens=0),
            "temperature": request(store.render(1), temperature=-1.0),
            "top_p": request(store.render(1), top_p=0.0),
            "presence_penalty": request(store.render(1), presence_penalty=2.5),
            "seed": request(store.render(1), seed=-1),
            "at least one token": request(RenderedTokens(())),
            r"token ids must lie in \[0, 160\)": request(RenderedTokens((1, 160))),
            "videos": request(RenderedTokens((1, VIDEO, 2))),
            "1 images and 0 runs": request(RenderedTokens((1, 2), ("i0",))),
            "0 images and 1 runs": request(replace(image, image_ids=())),
            "fills 4 placeholders, the prompt has 3": request(RenderedTokens((1, *[IMAGE] * 3, 2), ("i0",))),
            "'nowhere' is not in the image store": request(replace(image, image_ids=("nowhere",))),
            "ends inside an image": request(RenderedTokens((1, *[IMAGE] * 4), ("i0",))),
        }

        async def mixed() -> list[object]:
            return await asyncio.gather(*(engine.generate(r) for r in [*good, *bad.values()]), return_exceptions=True)

        outcomes = asyncio.run(asyncio.wait_for(mixed(), timeout=60))
        self.assert_parity(good, outcomes[: len(good)], model=model, store=store)
        for message, outcome in zip(bad, outcomes[len(good) :], strict=True):
            assert isinstance(outcome, ValueError), message
            with pytest.raises(ValueError, match=message):
                raise outcome

    def test_weights_cannot_change_under_a_running_request(self, engine, model, store):
        async def change_midway() -> Completion:
            task = asyncio.create_task(engine.generate(request(store.render(1, 2), max_new_tokens=50)))
            await asyncio.sleep(0.01)
            with pytest.raises(EngineError, match="idle"):
                engine.load_weights(model.state_dict().items(), policy_version=4)
            return await task

        assert asyncio.run(change_midway()).policy_version == 3

    def test_close_aborts_what_runs(self, engine, store):
        async def close_midway() -> list[Completion]:
            requests = [request(store.render(seed), seed=seed, max_new_tokens=150) for seed in range(12)]
            tasks = [asyncio.create_task(engine.generate(one)) for one in requests]
            await asyncio.sleep(0.01)
            await engine.close()
            await engine.close()
            return await asyncio.gather(*tasks)

        completions = asyncio.run(asyncio.wait_for(close_midway(), timeout=60))
        assert {c.finish_reason for c in completions} <= {"aborted", "stop"}
        with pytest.raises(EngineError, match="closed"):
            run(engine, request(store.render(1)))
