"""Rollouts on the real embedded engine: a crop enters a real model, and log-probs are those of one forward."""

from __future__ import annotations

import asyncio
import inspect

import pytest
import torch
from scripted_agent import (
    ZOOM,
    ScriptedEngine,
    image_store,
    make_agent,
    make_producer,
    make_question,
    tokenizer,
    turn_of,
)

from nemo_axpo.algorithms.confidence import confidence_of
from nemo_axpo.data.samples import cut_prefix
from nemo_axpo.data.vocabulary import SpecialTokens, banned_token_ids
from nemo_axpo.engines.hf.engine import HfEngine
from nemo_axpo.models.qwen3_vl.tiny import tiny_config
from nemo_axpo.rollouts.limits import RolloutLimits
from nemo_axpo.types import RolloutStatus
from nemo_axpo.world.tokenizer import VOCAB_SIZE

SPECIAL = SpecialTokens.from_tokenizer(tokenizer())
BANNED = banned_token_ids(tokenizer(), vocab_size=VOCAB_SIZE)
LIMITS = RolloutLimits(max_new_tokens=60, max_row_tokens=120)


class OpeningCall:
    """The embedded engine, but an ordinary rollout opens with a scripted tool call: random weights make none."""

    def __init__(self, engine: HfEngine) -> None:
        self.engine, self.script = engine, ScriptedEngine(lambda request: ZOOM)

    @property
    def policy_version(self) -> int:
        return self.engine.policy_version

    async def generate(self, request):
        is_opening = turn_of(request) == 0 and "/k" not in request.request_id
        return await (self.script if is_opening else self.engine).generate(request)


@pytest.fixture(scope="module")
def model():
    from transformers import Qwen3VLForConditionalGeneration

    torch.manual_seed(0)
    config = tiny_config(tokenizer(), vocab_size=VOCAB_SIZE)
    model = Qwen3VLForConditionalGeneration._from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
    return model


def make_engine(model, store) -> HfEngine:
    engine = HfEngine(
        model.config,
        image_store=store,
        stop_token_ids=(SPECIAL.im_end, SPECIAL.endoftext),
        banned_token_ids=BANNED,
        max_num_seqs=16,
        max_model_len=LIMITS.max_row_tokens,
    )
    engine.load_weights(model.state_dict().items(), policy_version=5)
    return engine


def run(model, question_ids=("q1", "q2"), *, num_rollouts=3):
    """Rollouts, then two continuations of the last one's prefix."""
    store = image_store()
    engine = OpeningCall(make_engine(model, store))
    producer = make_producer(make_agent(engine, store, limits=LIMITS))
    colours = {"q1": "red", "q2": "green"}
    questions = [make_question(store, question_id, colour=colours[question_id]) for question_id in question_ids]

    async def step():
        rollouts = await producer.run_rollouts(questions, num_rollouts=num_rollouts, seed=4)
        prefix = cut_prefix(rollouts[-1], confidence=confidence_of(rollouts[-1]))
        return rollouts, await producer.resample([prefix], questions=questions, num_continuations=2, seed=4)

    rollouts, continuations = asyncio.run(step())
    return rollouts, continuations, store


@torch.no_grad()
def forward_logprobs(model, rollout, store) -> torch.Tensor:
    """[T] log-probs of the row by one forward of the Hugging Face model; position 0 is 0."""
    ids = torch.tensor([rollout.token_ids])
    images = [store.features(image_id) for image_id in rollout.image_ids]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.cat([image.pixel_values_PD for image in images]),
        "image_grid_thw": torch.tensor([image.grid_thw for image in images]),
    }
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        inputs["mm_token_type_ids"] = (ids == SPECIAL.image_pad).int()
    model.model.rope_deltas = None
    logits_TV = model(**inputs, use_cache=False).logits[0].float()
    logits_TV[:, list(BANNED)] = float("-inf")
    picked = logits_TV[:-1].log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
    return torch.cat([torch.zeros(1), picked])


def test_the_crop_reaches_the_model_and_logprobs_agree_with_one_forward(model):
    rollouts, continuations, store = run(model)
    assert len(rollouts) == 6 and all(len(rollout.turns) >= 2 for rollout in rollouts)
    assert all(len(rollout.image_ids) == len(rollout.turns) for rollout in rollouts)
    for rollout in rollouts:
        expected, start = forward_logprobs(model, rollout, store), len(rollout.token_ids)
        start -= len(rollout.turns[-1].completion.token_ids)
        assert rollout.turns[-1].completion.policy_version == 5
        torch.testing.assert_close(torch.tensor(rollout.logprobs)[start:], expected[start:], atol=2e-5, rtol=0)
    for row in continuations:
        expected, start = forward_logprobs(model, row, store), row.prefix.num_tokens
        mask = torch.tensor(row.model_mask)
        mask[:start] = False
        assert mask.any() and row.uses_tool
        torch.testing.assert_close(torch.tensor(row.logprobs)[mask], expected[mask], atol=2e-5, rtol=0)


def test_rollouts_do_not_depend_on_their_neighbours(model):
    def content(rollouts):
        return {r.rollout_id: (r.token_ids, r.status, r.reward) for r in rollouts}

    together, alone = run(model)[0], run(model, ("q2",), num_rollouts=2)[0]
    assert content(alone).items() <= content(together).items()
    assert len({rollout.token_ids for rollout in together}) == 6
    assert {rollout.status for rollout in together} <= set(RolloutStatus) - {RolloutStatus.LOST}
