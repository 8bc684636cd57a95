"""Chat rendering: text becomes tokens once, images become exactly their grid, and nothing in a text can forge either."""

from __future__ import annotations

import copy

import pytest
from PIL import Image
from scripted_agent import ZOOM, answer, image_store, make_question, tokenizer
from thinking_template import THINKING_TEMPLATE

from nemo_axpo.data.chat import ChatRenderer
from nemo_axpo.tools.image_zoom_in import ImageZoomIn
from nemo_axpo.types import ImagePart, Message, Question, TextPart, ToolResult

TEMPLATES = {"world": None, "thinking": THINKING_TEMPLATE}


@pytest.fixture(params=TEMPLATES, name="template")
def template_fixture(request):
    return TEMPLATES[request.param]


def tokenizer_with(template):
    tokens = copy.deepcopy(tokenizer())
    if template is not None:
        tokens.chat_template = template
    return tokens


def make_renderer(template=None, *, store=None, **options):
    store = image_store() if store is None else store
    options = {"tool_schemas": [ImageZoomIn(store).schema], **options}
    return ChatRenderer(tokenizer_with(template), store, **options), store


def question(*parts, role="user"):
    return Question(
        "q7", (Message(role, tuple(TextPart(p) if isinstance(p, str) else p for p in parts)),), "red", "world"
    )


# ----------------------------------------------------------------------------------------------------------- prompt
def test_the_prompt_of_the_world_word_for_word():
    renderer, store = make_renderer()
    prompt = renderer.prompt(make_question(store))
    assert renderer.decode(prompt.token_ids) == (
        '<|im_start|>system\n<tools>\n{"name": "image_zoom_in", "arguments": ["bbox_2d", "label"]}\n</tools><|im_end|>\n'
        "<|im_start|>user\n<|vision_start|>" + 6 * "<|image_pad|>" + "<|vision_end|>"
        "colour of the dot in row 1, column 1?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )


def test_each_placeholder_becomes_the_grid_of_its_own_image(template):
    renderer, store = make_renderer(template)
    wide, small = store.add(Image.new("RGB", (192, 128), "red")), store.add(Image.new("RGB", (32, 32), "blue"))
    prompt = renderer.prompt(question("first ", ImagePart(small), " then ", ImagePart(wide), "?"))
    assert prompt.image_ids == (small, wide)
    special, ids = renderer.special, list(prompt.token_ids)
    starts = [i for i, token in enumerate(ids) if token == special.vision_start]
    runs = [ids.index(special.vision_end, start) - start - 1 for start in starts]
    assert runs == [store.features(small).num_tokens, store.features(wide).num_tokens] == [4, 6]
    assert ids.count(special.image_pad) == 10
    text = renderer.decode(ids)
    assert text.index("first ") < text.index("<|image_pad|>") < text.index(" then ") < text.rindex("<|image_pad|>")


def test_tools_and_instructions_share_the_system_turn(template):
    renderer, store = make_renderer(template, instructions="look closely")
    text = renderer.decode(renderer.prompt(make_question(store)).token_ids)
    system = text.split("<|im_end|>")[0]
    assert text.count("<|im_start|>system") == 1
    assert system.index("look closely") < system.index("<tools>") < system.index("image_zoom_in")


def test_without_tools_there_is_no_word_of_them(template):
    renderer, store = make_renderer(template, tool_schemas=[])
    text = renderer.decode(renderer.prompt(make_question(store)).token_ids)
    assert text.startswith("<|im_start|>user\n") and "tools" not in text


# ------------------------------------------------------------------------------------------- token in, token out
def whole_conversation(renderer, store, *, asked, turns, results):
    """The conversation through the template in one piece, placeholders expanded by the images' token counts."""
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked.messages[0].parts[1].text}]}
    ]
    for turn, result in zip(turns, results, strict=True):
        messages.append({"role": "assistant", "content": "<think>\n" + turn.removesuffix("<|im_end|>")})
        images = [{"type": "image"} for _ in result.image_ids]
        messages.append({"role": "tool", "content": [*images, {"type": "text", "text": result.text}]})
    text = renderer.tokenizer.apply_chat_template(
        messages, tools=[ImageZoomIn(store).schema], add_generation_prompt=True, tokenize=False
    )
    for image_id in (*asked.image_ids, *(i for result in results for i in result.image_ids)):
        text = text.replace("<|image_pad|>", "<|IMAGE|>" * store.features(image_id).num_tokens, 1)
    return renderer.tokenizer.encode(text.replace("<|IMAGE|>", "<|image_pad|>"), add_special_tokens=False)


def test_turn_by_turn_gives_the_tokens_of_the_whole_conversation(template):
    renderer, store = make_renderer(template)
    asked = make_question(store)
    crop = store.add(Image.new("RGB", (64, 64), "blue"))
    results = [ToolResult("image 1:", (crop,)), ToolResult("img_idx 7 does not exist: use 0 to 1")]
    turns = [ZOOM, ZOOM]
    row = renderer.prompt(asked)
    for turn, result in zip(turns, results, strict=True):
        row = row + type(row)(renderer.encode(turn)) + renderer.observation(result)
    whole = whole_conversation(renderer, store, asked=asked, turns=turns, results=results)
    assert list(row.token_ids) == whole
    assert row.image_ids == (*asked.image_ids, crop)


def test_an_observation_is_what_lies_between_two_model_turns(template):
    renderer, store = make_renderer(template)
    crop = store.add(Image.new("RGB", (64, 64), "blue"))
    observed = renderer.observation(ToolResult("image 1:", (crop,)))
    assert renderer.decode(observed.token_ids) == (
        "\n<|im_start|>user\n<tool_response>\n<|vision_start|>" + 4 * "<|image_pad|>" + "<|vision_end|>image 1:"
        "\n</tool_response><|im_end|>\n<|im_start|>assistant\n<think>\n"
    )
    assert observed.image_ids == (crop,)
    silent = renderer.decode(renderer.observation(ToolResult("")).token_ids)
    assert "<tool_response>\n\n</tool_response>" in silent


def test_a_tool_that_quotes_the_conversation_changes_nothing_but_its_own_text():
    renderer, _ = make_renderer()
    text = renderer.decode(renderer.observation(ToolResult("question assistant \x00 </think>")).token_ids)
    assert text.startswith("\n<|im_start|>user\n<tool_response>\nquestion assistant \x00 </think>\n</tool_response>")


def test_decoding_and_encoding_keep_every_control_token():
    renderer, _ = make_renderer()
    for text in (ZOOM, answer("red"), "<|vision_start|><|image_pad|><|vision_end|>", " two  spaces , kept "):
        assert renderer.decode(renderer.encode(text)) == text


def test_a_model_turn_ends_at_im_end_or_endoftext():
    renderer, _ = make_renderer()
    assert [renderer.decode([token]) for token in renderer.stop_token_ids] == ["<|im_end|>", "<|endoftext|>"]


# ---------------------------------------------------------------------------------------------------------- refused
@pytest.mark.parametrize("token", ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|im_start|>", "<|im_end|>"])
def test_a_question_that_spells_control_tokens_is_refused(token):
    renderer, store = make_renderer()
    picture = ImagePart(store.add(Image.new("RGB", (32, 32))))
    for asked in (question(f"what is {token}?"), question(picture, f"what is {token}?")):
        with pytest.raises(ValueError) as caught:
            renderer.prompt(asked)
        assert str(caught.value).startswith(
            "the text of a question must not spell control tokens; question 'q7' holds "
        )
        assert token in str(caught.value) and "remove them from its text" in str(caught.value)


def test_earlier_model_turns_may_hold_thinking_and_calls():
    renderer, _ = make_renderer()
    turn = Message("assistant", (TextPart("<think>\nlet me look\n</think>\n\n<tool_call>{}</tool_call>"),))
    messages = (Message("user", (TextPart("hard to see"),)), turn, Message("user", (TextPart("and now?"),)))
    ids = renderer.prompt(Question("q7", messages, "red", "world")).token_ids
    assert renderer.special.tool_call in ids


def test_a_template_that_drops_images_is_refused():
    blind = THINKING_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "")
    with pytest.raises(ValueError, match=r"as one <\|image_pad\|>; got 0 and 0: use a chat template that renders image"):
        make_renderer(blind)


def test_a_template_that_is_no_jinja_is_refused():
    with pytest.raises(ValueError, match="must be Jinja that renders; got TemplateSyntaxError"):
        make_renderer("{% for message in messages %}")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("assistant\\n<think>\\n", "assistant\\n"),
        ("{{- content + '<|im_end|>\\n' }}", "{{- content + '<|endoftext|>\\n' }}"),
        (
            "message.role == 'tool' %}\n        {%- if loop.first",
            "message.role == 'never' %}\n        {%- if loop.first",
        ),
    ],
    ids=["no thinking", "model turn not closed", "no tool results"],
)
def test_a_template_of_another_kind_of_model_is_refused_before_any_rollout(old, new):
    assert old in THINKING_TEMPLATE
    with pytest.raises(ValueError, match="use the checkpoint of a thinking model"):
        make_renderer(THINKING_TEMPLATE.replace(old, new))


def test_a_tokenizer_without_a_template_is_refused():
    bare = copy.deepcopy(tokenizer())
    bare.chat_template = None
    with pytest.raises(ValueError, match="no chat template: copy chat_template.jinja into the checkpoint directory"):
        ChatRenderer(bare, image_store())
