"""A task that needs two tools: zoom in, count in python on the crop, answer. Scripted policies; agent and tools are real."""

from __future__ import annotations

import asyncio
import json
import re

import numpy as np
import pytest
from scripted_agent import ScriptedEngine, answer, image_store, make_agent, tokenizer, turn_of

from nemo_axpo.algorithms.base import get_algorithm
from nemo_axpo.algorithms.confidence import resample_scores, rollout_scores
from nemo_axpo.assembly import build_questions
from nemo_axpo.config.load import load_config
from nemo_axpo.data.samples import build_samples, cut_prefix
from nemo_axpo.rewards.base import VerifierRegistry
from nemo_axpo.rewards.exact_match import ExactMatch
from nemo_axpo.rollouts.limits import RolloutLimits
from nemo_axpo.rollouts.producer import Producer
from nemo_axpo.tools.image_zoom_in import ImageZoomIn
from nemo_axpo.tools.python.tool import PythonTool
from nemo_axpo.types import RolloutStatus
from nemo_axpo.world.scene import NUM_COLUMNS, TILE, tile_box
from nemo_axpo.world.specks import FEWEST, MOST, SPECKS, SpeckStream, draw_specks

COUNT = "import numpy as np\npixels = np.asarray(_pil_images[{index}]).astype(int)\nint((pixels[..., 0] > 200).sum())"


@pytest.fixture(scope="module")
def store():
    return image_store()


@pytest.fixture(scope="module")
def tools(store):
    python = PythonTool(store)
    yield [ImageZoomIn(store, min_side=8, observation="image {index}:"), python]
    python.close()


def call(name, **arguments):
    text = json.dumps({"name": name, "arguments": arguments})
    return f"let me look\n</think>\n\n<tool_call>\n{text}\n</tool_call><|im_end|>"


def text_of(request):
    return tokenizer().decode(request.prompt.token_ids)


def tile_asked(request):
    row, column = re.search(r"row (\d), column (\d)", text_of(request)).groups()
    return int(row) - 1, int(column) - 1


def counts_the_crop(request, *, index=1):
    """Zooms into the tile, counts in image ``index`` and answers with what python said."""
    if turn_of(request) == 0:
        row, column = tile_asked(request)
        return call("image_zoom_in", bbox_2d=list(tile_box(row=row, column=column)), label="specks")
    if turn_of(request) == 1:
        return call("python", code=COUNT.format(index=index))
    return answer(re.findall(r"<tool_response>\s*(\d+)\s*</tool_response>", text_of(request))[-1])


def roll_out(script, store, tools, *, num_questions=3, num_rollouts=2):
    limits = RolloutLimits(max_new_tokens=400, max_row_tokens=4000, max_turns=3)
    agent = make_agent(ScriptedEngine(script), store, tools=tools, limits=limits, timeout_s=30)
    producer = Producer(agent, verifiers=VerifierRegistry({SPECKS: ExactMatch()}))
    questions = SpeckStream("test", seed=0, image_store=store).take(0, num_questions)
    rollouts = asyncio.run(producer.run_rollouts(questions, num_rollouts=num_rollouts, seed=0))
    return producer, questions, rollouts


def test_specks_are_where_they_are_counted():
    image, counts = draw_specks(np.random.default_rng(3))
    bright = np.asarray(image)[..., 0] > 200
    for tile, count in enumerate(counts):
        top, left = (tile // NUM_COLUMNS) * TILE, (tile % NUM_COLUMNS) * TILE
        assert bright[top : top + TILE, left : left + TILE].sum() == count and FEWEST <= count <= MOST


def test_questions_are_the_same_in_every_process(store):
    stream = SpeckStream("test", seed=0, image_store=store)
    assert stream.take(2, 2) == stream.take(0, 4)[2:]
    assert len({question.answer for question in stream.take(0, 20)}) > 5
    assert stream.take(0, 1) != SpeckStream("test", seed=1, image_store=store).take(0, 1)


def test_zoom_then_python_gets_every_answer(store, tools):
    _, questions, rollouts = roll_out(counts_the_crop, store, tools)
    assert [rollout.status for rollout in rollouts] == [RolloutStatus.ANSWERED] * 6
    assert [rollout.answer for rollout in rollouts] == [q.answer for q in questions for _ in range(2)]
    assert {rollout.reward for rollout in rollouts} == {1.0}
    zoom, python = rollouts[0].turns[0].tool_result, rollouts[0].turns[1].tool_result
    assert len(zoom.image_ids) == 1 and store.image(zoom.image_ids[0]).size[0] == pytest.approx(TILE, abs=1)
    assert (python.text, python.error) == (questions[0].answer, "")


def test_python_on_the_whole_picture_is_wrong(store, tools):
    _, _, rollouts = roll_out(lambda request: counts_the_crop(request, index=0), store, tools)
    assert {rollout.reward for rollout in rollouts} == {0.0}


def test_resampled_calls_find_the_crop_of_their_own_rollout(store, tools):
    """All zoom into the wrong tile; the continuations of AXPO zoom into the right one, and their python sees that crop."""

    def script(request):
        is_continuation = "/k" in request.request_id
        if turn_of(request) == 0 and not is_continuation:
            return call("image_zoom_in", bbox_2d=[0, 0, 50, 50], label="corner")
        reply = counts_the_crop(request)
        return reply.split("<tool_call>", 1)[1] if turn_of(request) == 0 else reply

    producer, questions, rollouts = roll_out(script, store, tools, num_questions=2, num_rollouts=4)
    assert {rollout.reward for rollout in rollouts} == {0.0}
    axpo = get_algorithm("axpo")(num_questions=2, num_rollouts=4, num_continuations=2, resample_ratio=0.5)
    plan = axpo.plan(rollout_scores(rollouts))
    by_id = {rollout.rollout_id: rollout for rollout in rollouts}
    prefixes = [cut_prefix(by_id[source.rollout_id], confidence=source.confidence) for source in plan.sources]
    continuations = asyncio.run(producer.resample(prefixes, questions=questions, num_continuations=2, seed=0))
    assert len(continuations) == 4 and {row.reward for row in continuations} == {1.0}
    credits = axpo.credit(rollout_scores(rollouts), plan, resample_scores(continuations))
    samples = build_samples((*rollouts, *continuations), credits, temperature=1.0)
    assert len(samples) == 12 and max(max(sample.advantages) for sample in samples) > 0


def test_the_task_is_chosen_by_config(store):
    config = load_config(["data=world_specks"])
    questions = build_questions(config, stream="train", seed=4, images=store)
    assert questions.take(0, 2) == SpeckStream("train", seed=4, image_store=store).take(0, 2)
    with pytest.raises(ValueError, match="data.name: input should be 'world', 'world_specks' or 'files'; got 'other'"):
        load_config(["data.name=other"])
