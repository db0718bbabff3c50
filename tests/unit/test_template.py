"""Templates: the text they write, what is supervised, and the Hugging Face chat template made from them."""

import copy

import pytest
from PIL import Image

from emma.errors import EmmaError
from emma.processing.prompts import split_messages
from emma.processing.template import (
    SYSTEM_VICUNA,
    Turn,
    chat_turns,
    check_alternation,
    drop_leading_answer,
    get_template,
    join,
    turns_of,
)

CHATML = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
ODD = ["", " two  spaces ", "</s><s>", "日本語 😀", "def f():\n\treturn '{{x}}' \\ \"y\"", "USER: ASSISTANT: <image>"]


def sample(*texts, first="human", **extra):
    roles = ["human", "gpt"] if first == "human" else ["gpt", "human"]
    turns = [{"from": roles[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"id": "s1", "conversations": turns} | extra


def supervised(segments):
    return "|".join(segment.text for segment in segments if segment.supervised)


def test_vicuna_text(tiny_tokenizer):
    template = get_template("vicuna_v1", tiny_tokenizer)
    segments = template.render(
        [Turn("user", "Q1", images=1), Turn("assistant", "A1"), Turn("user", "Q2")], generation=True
    )
    assert join(segments) == SYSTEM_VICUNA + " USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:"
    assert supervised(segments) == " A1|</s>"


def test_empty_messages_as_upstream_and_an_empty_answer_still_supervises_eos(tiny_tokenizer):
    template = get_template("vicuna_v1", tiny_tokenizer)
    segments = template.render([Turn("system", ""), Turn("user", ""), Turn("assistant", "")])
    assert join(segments) == "USER:ASSISTANT:</s>"
    assert supervised(segments) == "</s>"
    only_image = template.render([Turn("system", "S"), Turn("user", "", images=2), Turn("assistant", "A")])
    assert join(only_image) == "S USER: <image>\n<image> ASSISTANT: A</s>"


def test_plain(tiny_tokenizer):
    template = get_template("plain", tiny_tokenizer)
    turns = [Turn("user", "Describe.", images=1), Turn("assistant", " a cat")]
    assert join(template.render(turns)) == "<image> a cat\n"
    assert supervised(template.render(turns)) == " a cat\n"
    assert join(template.render(turns[:1], generation=True)) == "<image>"
    with pytest.raises(EmmaError, match="vicuna_v1"):
        template.render([Turn("user", "no image"), Turn("assistant", "A")])
    with pytest.raises(EmmaError, match="vicuna_v1"):
        template.render(turns * 2)


@pytest.mark.parametrize("generation", [False, True])
@pytest.mark.parametrize("system", [None, "Be brief.", ""])
@pytest.mark.parametrize("images", [0, 1, 3])
@pytest.mark.parametrize("text", ODD)
def test_jinja_equals_template(tiny_tokenizer, text, images, system, generation):
    template = get_template("vicuna_v1", tiny_tokenizer)
    turns = [] if system is None else [Turn("system", system)]
    turns += [Turn("user", text, images), Turn("assistant", text), Turn("user", text)]
    parts = [{"type": "image"}] * images + ([{"type": "text", "text": text}] if text or not images else [])
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    messages[-3]["content"] = parts if images else text
    rendered = tiny_tokenizer.apply_chat_template(
        messages, chat_template=template.jinja(), tokenize=False, add_generation_prompt=generation
    )
    assert rendered == join(template.render(turns, generation))


@pytest.mark.parametrize("text", ODD[1:])
def test_tokenizer_template_equals_apply_chat_template(tiny_tokenizer, text):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHATML
    template = get_template("tokenizer", tokenizer)
    turns = [Turn("system", "S"), Turn("user", text), Turn("assistant", text), Turn("user", "again")]
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    for generation in (False, True):
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
        assert join(template.render(turns, generation)) == expected
    assert supervised(template.render(turns)) == text.strip() + "|</s>"
    specials = [segment.text for segment in template.render(turns) if segment.kind == "special"]
    assert specials == ["<s>", "</s>"] * 4  # the template's own; none from the user's text


def test_tokenizer_template_refusals(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    with pytest.raises(EmmaError, match="no chat template"):
        get_template("tokenizer", tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    with pytest.raises(EmmaError, match="no stop"):
        get_template("tokenizer", tokenizer).render([Turn("user", "a"), Turn("assistant", "b")])
    tokenizer.chat_template = "{{ messages[-1]['content'] }}</s>"
    with pytest.raises(EmmaError, match="drops"):
        get_template("tokenizer", tokenizer).render([Turn("user", "a"), Turn("assistant", "b")])
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(EmmaError, match="no system role"):
        get_template("tokenizer", tokenizer).render([Turn("system", "a"), Turn("user", "b")])
    with pytest.raises(EmmaError, match="vicuna_v1, plain, tokenizer"):
        get_template("llama3", tokenizer)


def test_image_moves_to_the_front_of_its_turn():
    turns = turns_of(sample("Look: <image> what?\n", "A cat", " More? ", "No <image>", image="a.png"))
    assert turns[0] == Turn("user", "Look:  what?", images=1)
    assert turns[1:] == [Turn("assistant", "A cat"), Turn("user", " More? "), Turn("assistant", "No <image>")]
    assert turns_of(sample("<image><image>a", "b", image=["x.png", "y.png"]))[0] == Turn("user", "a", images=2)
    assert turns_of(sample("What is <image> ?", "A tag"))[0] == Turn("user", "What is <image> ?")


@pytest.mark.parametrize(
    ("text", "image", "counts"),
    [
        ("no marker", "a.png", "1 image.*but 0"),
        ("<image> <image>", "a.png", "1 image.*but 2"),
        ("<image>", ["a", "b"], "2 image.*but 1"),
    ],
)
def test_placeholder_mismatch_names_sample_and_numbers(text, image, counts):
    with pytest.raises(EmmaError, match=f"'s1'.*{counts}"):
        turns_of(sample(text, "A", image=image))


def test_image_of_a_dropped_turn_does_not_count():
    row = sample("Ready <image>", "<image>\nQ", "A", first="gpt", image="a.png")
    assert [turn.images for turn in turns_of(row)] == [0, 1, 0]


def test_leading_answer_is_dropped_and_order_checked():
    turns = turns_of(sample("Hi", "Q", "A", first="gpt"))
    assert [turn.text for turn in drop_leading_answer(turns)] == ["Q", "A"]
    check_alternation(drop_leading_answer(turns), "sample 's1'")
    with pytest.raises(EmmaError, match=r"'s1'.*\['user', 'user'\]"):
        check_alternation([Turn("user", "a"), Turn("user", "b")], "sample 's1'")
    with pytest.raises(EmmaError, match="alternate"):
        check_alternation([], "sample 's1'")


@pytest.mark.parametrize(
    "conversations", [None, [], "text", [{"from": "alien", "value": "x"}], [{"from": "human"}], ["x"]]
)
def test_malformed_conversation(conversations):
    with pytest.raises(EmmaError, match="'s1'"):
        turns_of({"id": "s1", "conversations": conversations})


def test_chat_turns():
    turns = chat_turns([{"role": "user", "content": "a"}], images=2, system="S")
    assert turns == [Turn("system", "S"), Turn("user", "a", images=2)]
    with pytest.raises(EmmaError, match="last one"):
        chat_turns([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], images=0)


def test_split_messages():
    picture = Image.new("RGB", (2, 2))
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert split_messages([{"role": "user", "content": parts}]) == ([{"role": "user", "content": "a\nb"}], [picture])
    with pytest.raises(EmmaError, match="first user message"):
        split_messages([{"role": "user", "content": "q"}, {"role": "user", "content": parts}])
