"""Rows of the warm start: the exact share of tool calls, loss on model tokens alone, fresh rows, small rows."""

from __future__ import annotations

import asyncio

import pytest
from scripted_agent import image_store, tokenizer

from nemo_axpo.config.load import load_config
from nemo_axpo.data.chat import ChatRenderer
from nemo_axpo.tools.executor import ToolExecutor
from nemo_axpo.tools.image_zoom_in import ImageZoomIn
from nemo_axpo.tools.registry import ToolRegistry
from nemo_axpo.world.questions import QuestionStream, rng_for
from nemo_axpo.world.scene import SceneStyle
from nemo_axpo.world.trajectories import teach
from nemo_axpo.world.warm_start import WarmStartSamples


def warm_start(*, tool_rate=0.275, aim_rate=0.05, seed=0):
    store = image_store()
    registry = ToolRegistry([ImageZoomIn(store, observation=load_config([]).tools.observation)])
    renderer = ChatRenderer(tokenizer(), store, tool_schemas=registry.schemas)
    stream = QuestionStream("warm_start", seed=seed, style=SceneStyle(), image_store=store)
    samples = WarmStartSamples(
        stream,
        renderer=renderer,
        tools=ToolExecutor(registry),
        image_store=store,
        tool_rate=tool_rate,
        aim_rate=aim_rate,
        seed=seed,
    )
    return samples, renderer, stream


def take(samples, steps, *, batch_size):
    async def collect():
        return [await samples.take(step, batch_size=batch_size) for step in steps]

    return asyncio.run(collect())


def uses_tool(sample):
    return len(sample.image_ids) == 2


@pytest.mark.parametrize(
    ("tool_rate", "expected"), [(0.275, [2, 3, 3, 3]), (0.25, [2, 3, 2, 3]), (0.0, [0] * 4), (1.0, [10] * 4)]
)
def test_the_share_of_tool_calls_is_exact_over_steps(tool_rate, expected):
    samples, _, _ = warm_start(tool_rate=tool_rate)
    steps = take(samples, range(4), batch_size=10)
    assert [len(step) for step in steps] == [10] * 4
    assert [sum(map(uses_tool, step)) for step in steps] == expected


def test_the_loss_acts_on_the_teachers_words_alone():
    samples, renderer, stream = warm_start()
    (step,) = take(samples, [0], batch_size=8)
    assert [uses_tool(sample) for sample in step] == [True] * 2 + [False] * 6
    for index, sample in enumerate(step):
        lesson = teach(
            stream.world_question(index), use_tool=uses_tool(sample), aim_rate=0.05, rng=rng_for("teacher", 0, index)
        )
        taught = [token for token, trained in zip(sample.token_ids, sample.loss_mask, strict=True) if trained]
        assert renderer.decode(taught) == "".join(lesson.turns)
        assert not set(taught) & {renderer.special.image_pad, renderer.special.vision_start, renderer.special.im_start}


def test_a_row_is_prompt_call_observation_answer():
    samples, renderer, stream = warm_start(tool_rate=1.0, aim_rate=1.0)
    ((sample,),) = take(samples, [0], batch_size=1)
    asked = stream.world_question(0)
    prompt = renderer.prompt(asked.question)
    assert sample.token_ids[: len(prompt.token_ids)] == prompt.token_ids and sample.image_ids[:1] == prompt.image_ids
    text = renderer.decode(sample.token_ids)
    call, response, answer = text.index("<tool_call>"), text.index("<tool_response>"), text.index(asked.question.answer)
    assert (
        call < response < text.index("image 1:") < answer < text.rindex("<|im_end|>") == len(text) - len("<|im_end|>")
    )


def test_no_row_is_ever_seen_twice():
    samples, _, _ = warm_start()
    rows = [sample for step in take(samples, range(5), batch_size=16) for sample in step]
    assert len({sample.question_id for sample in rows}) == len({sample.image_ids[0] for sample in rows}) == 80


def test_a_step_can_be_taken_again():
    first, again = (take(warm_start()[0], [3], batch_size=6) for _ in range(2))
    other = take(warm_start(seed=1)[0], [3], batch_size=6)
    assert first == again and first != other


def test_prompts_and_rows_are_as_small_as_the_quickstart_needs():
    samples, renderer, _ = warm_start()
    rows = [sample for step in take(samples, range(3), batch_size=64) for sample in step]
    assert max(len(sample.token_ids) for sample in rows) <= 110
    for sample in rows[:16]:
        prompt = sample.token_ids[: sample.loss_mask.index(True)]
        assert len(prompt) - prompt.count(renderer.special.image_pad) <= 48


def test_the_quickstarts_limits_leave_room_for_every_turn():
    config = load_config([]).rollout
    samples, renderer, _ = warm_start(tool_rate=1.0)
    for sample in take(samples, [0], batch_size=32)[0]:
        turns = renderer.decode([t for t, m in zip(sample.token_ids, sample.loss_mask, strict=True) if m])
        for turn in turns.split("<|im_end|>")[:-1]:
            assert len(renderer.encode(turn)) + 1 <= config.max_new_tokens
        assert len(sample.token_ids) <= config.max_row_tokens
