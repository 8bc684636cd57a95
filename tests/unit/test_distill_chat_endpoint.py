"""A chat endpoint as a teacher: rows become messages, every form of reply becomes the tokens a student would sample."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging

import pytest
from local_services import Reply, running
from PIL import Image
from scripted_agent import (
    CALL,
    ScriptedEngine,
    by_turn,
    image_store,
    make_agent,
    make_producer,
    make_question,
    tokenizer,
)

from nemo_axpo.data.chat import ChatRenderer
from nemo_axpo.distill.chat_endpoint import ChatEndpoint, reply_text
from nemo_axpo.engines.base import EngineError
from nemo_axpo.remote.json_client import JsonClient, RetrySettings
from nemo_axpo.types import GenerationRequest, RenderedTokens, RolloutStatus, SamplingParams

ANSWER = '<answer>\n\\boxed{"red"}\n</answer>'
STRUCTURED = {
    "function": {"name": "image_zoom_in", "arguments": json.dumps({"bbox_2d": [0, 0, 333, 500], "label": "dot"})}
}


def message(content=None, **fields):
    return Reply(
        {"choices": [{"message": {"role": "assistant", "content": content} | fields, "finish_reason": "stop"}]}
    )


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ({"reasoning_content": "let me look\n", "content": f"\n{CALL}"}, f"let me look\n</think>\n\n{CALL}"),
        ({"reasoning": "look", "content": ANSWER}, f"look\n</think>\n\n{ANSWER}"),
        ({"content": f"<think>\nlook\n</think>\n\n{ANSWER}"}, f"look\n</think>\n\n{ANSWER}"),
        ({"content": f"look\n</think>\n\n{ANSWER}\n"}, f"look\n</think>\n\n{ANSWER}"),
        ({"content": ANSWER}, f"\n</think>\n\n{ANSWER}"),
        ({"reasoning": "look", "content": None, "tool_calls": [STRUCTURED]}, f"look\n</think>\n\n{CALL}"),
        ({"reasoning": "look", "content": [{"type": "text", "text": ANSWER}]}, f"look\n</think>\n\n{ANSWER}"),
    ],
)
def test_every_form_of_reply_is_one_text(reply, expected):
    assert reply_text(reply) == expected


def endpoint(url, store, *, body=None):
    client = JsonClient(url, retry=RetrySettings(5.0, max_retries=1, max_time_s=10.0, first_delay_s=0.01))
    agent = make_agent(ScriptedEngine(by_turn()), store)
    return ChatEndpoint(client, model="big", renderer=agent.renderer, image_store=store, body=body)


def roll_out(url, *, body=None, num_rollouts=1):
    """One question through the real agent loop, whose engine is the endpoint."""
    store = image_store()
    engine = endpoint(url, store, body=body)
    producer = make_producer(make_agent(engine, store), max_retries=0)

    async def run():
        try:
            return await producer.run_rollouts([make_question(store)], num_rollouts=num_rollouts, seed=3)
        finally:
            await engine.close()

    return asyncio.run(run()), store


def test_a_rollout_with_a_tool_call_through_an_endpoint():
    def script(asked):
        is_first = len(asked.body["messages"]) == 2
        return message(CALL, reasoning_content="let me look") if is_first else message(ANSWER, reasoning="now I see it")

    with running(script) as service:
        (rollout,), store = roll_out(service.url + "/v1", body={"temperature": 0.5, "seed": None})
    assert (rollout.status, rollout.answer, rollout.reward) == (RolloutStatus.ANSWERED, "red", 1.0)
    assert rollout.turns[0].tool_call.name == "image_zoom_in" and len(rollout.image_ids) == 2
    # The row is what a student with our chat format samples: text, tokenised once.
    ids = tokenizer().encode(f"let me look\n</think>\n\n{CALL}<|im_end|>", add_special_tokens=False)
    assert rollout.turns[0].completion.token_ids == tuple(ids)
    first, second = (asked.body for asked in service.asked)
    assert service.asked[0].path == "/v1/chat/completions"
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("big", 0.5, 200) and "seed" not in first
    system, user = first["messages"]
    assert system["role"] == "system" and "image_zoom_in" in system["content"]
    picture, text = user["content"]
    assert text == {"type": "text", "text": "colour of the dot in row 1, column 1?"}
    data = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(data)).tobytes() == store.image(rollout.image_ids[0]).tobytes()
    spoken, observed = second["messages"][2:]
    assert spoken == {"role": "assistant", "content": f"<think>\nlet me look\n</think>\n\n{CALL}"}
    assert observed["role"] == "user" and [part["type"] for part in observed["content"]] == [
        "text",
        "image_url",
        "text",
    ]
    assert observed["content"][0]["text"].startswith("<tool_response>")


def test_token_ids_of_the_endpoint_are_taken_as_they_are():
    ids = tokenizer().encode(f"x\n</think>\n\n{ANSWER}<|im_end|>", add_special_tokens=False)

    def script(_):
        reply = message("something that is not read")
        reply.body["choices"][0]["token_ids"] = ids
        return reply

    with running(script) as service:
        (rollout,), _ = roll_out(service.url, body={"return_token_ids": True})
        assert service.asked[0].body["return_token_ids"] is True
    assert rollout.turns[0].completion.token_ids == tuple(ids) and rollout.reward == 1.0


def test_a_reply_that_was_cut_or_is_too_long_is_cut():
    def script(_):
        reply = message("words", reasoning="look")
        reply.body["choices"][0]["finish_reason"] = "length"
        return reply

    with running(script) as service:
        (rollout,), _ = roll_out(service.url)
    assert rollout.status is RolloutStatus.TOKEN_LIMIT and rollout.reward == 0.0
    with running(lambda _: message("words " * 300)) as service:
        (rollout,), _ = roll_out(service.url)
    assert rollout.status is RolloutStatus.TOKEN_LIMIT and len(rollout.turns[0].completion.token_ids) == 200


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply({"error": "full"}, status=503), "answered 503: full, in 2 attempts"),
        (Reply({"detail": "no such model"}, status=404), "answered 404: no such model"),
        (Reply({"choices": []}), "reply must hold choices"),
        (message("a <|image_pad|> b"), "must not spell control tokens"),
        (message(None, tool_calls=[{"function": {"name": "x", "arguments": "{"}}]), "must hold function.name and JSON"),
    ],
)
def test_what_cannot_be_used_is_a_lost_rollout_that_says_why(reply, said, caplog):
    caplog.set_level(logging.WARNING)
    with running(lambda _: reply) as service, pytest.raises(EngineError, match="all 1 rollouts were lost"):
        roll_out(service.url)
    assert said in caplog.text


def test_a_begun_model_turn_cannot_be_continued():
    store = image_store()
    engine = endpoint("http://127.0.0.1:9", store)
    prompt = ChatRenderer(tokenizer(), store).prompt(make_question(store))
    begun = prompt + RenderedTokens(tuple(tokenizer().encode("let me look\n</think>\n\n<tool_call>")))
    with pytest.raises(EngineError, match="cannot continue a model turn"):
        asyncio.run(engine.generate(GenerationRequest("q/0/t0", begun, SamplingParams(5), 0)))
