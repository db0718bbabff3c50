"""EMMA behind the runner's interface: one answer whatever the batch, images encoded once, weights loaded late."""

import random
from collections import Counter

import pytest
import torch
from PIL import Image

from emma.checkpoints.folder import save_folder
from emma.eval.answerers.emma import EmmaAnswerer
from emma.eval.answering import Question, Unanswerable
from emma.eval.pictures import Pasted
from emma.model import image_part as parts
from emma.model.alignment import LinearAlignment
from emma.model.image_part import image_part, project

TOKENS = 8


@pytest.fixture
def answerer(tmp_path, tiny_model, tiny_processor):
    """Factory of answerers. The alignment is moved away from its start, at which it ignores the instruction."""

    def make(alignment="linear"):
        model = tiny_model(alignment=alignment).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.startswith("alignment."):
                    parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        save_folder(tmp_path / alignment, model, tiny_processor(model.config), {})
        return EmmaAnswerer(tmp_path / alignment)

    return make


@pytest.fixture
def questions(tmp_path):
    """17 questions: six about one picture, three about another, one about each of four; two with two pictures, one
    with pasted ones; the rest text only."""
    rng = random.Random(0)
    pictures = [tmp_path / f"{i}.png" for i in range(6)]
    for i, picture in enumerate(pictures):
        size = (10 + 3 * i, 16)
        Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1])).save(picture)
    shown = [(pictures[0],)] * 6 + [(pictures[1],)] * 3 + [(picture,) for picture in pictures[2:]]
    shown += [(pictures[0], pictures[2]), (pictures[2], pictures[0]), (Pasted((pictures[3], pictures[4])),), ()]
    texts = [f"Is the {'very ' * rng.randint(0, 6)}old dog {word}?" for word in "abcdefghijklmnopq"]
    return [
        Question(str(i), f"{text}\nAnswer.", images, text if images else None)
        for i, (text, images) in enumerate(zip(texts, shown, strict=True))
    ]


def answers(answerer, questions, size):
    found = []
    for start in range(0, len(questions), size):
        found += answerer.answer(questions[start : start + size], TOKENS)
    return found


def directly(answerer, question):
    """The answer by the model's own `generate`, with pixels, one question at a time."""
    model, processor = answerer.model, answerer.processor
    messages = [{"role": "user", "content": question.prompt}]
    prompt = processor.encode_prompt(messages, question.open(), instruction=question.instruction)
    batch = processor.pad([prompt], side="left")
    with torch.inference_mode():
        output = model.generate(**batch, do_sample=False, max_new_tokens=TOKENS)
    return processor.decode(output[0, batch["input_ids"].shape[1] :]).strip()


@pytest.mark.parametrize("alignment", ["linear", "cross_attention", "none"])
def test_image_once_equals_image_per_question(answerer, questions, alignment):
    made = answerer(alignment)
    texts = [answer.text for answer in answers(made, questions, 4)]
    assert texts == [directly(made, question) for question in questions]
    assert len(set(texts)) > 4  # else equality would mean little


def test_batches_of_1_4_and_16_give_the_same_answers(answerer, questions):
    made = answerer()
    one = answers(made, questions, 1)
    assert one == answers(made, questions, 4) == answers(made, questions, 16)
    assert len({answer.text for answer in one}) > 4


def test_the_instruction_alone_changes_answers(answerer, questions):
    made = answerer()
    changed = [Question(q.id, q.prompt, q.pictures, "other words") for q in questions[:6]]
    assert answers(made, changed, 6) != answers(made, questions[:6], 6)


@pytest.mark.parametrize("alignment", ["linear", "cross_attention", "none"])
def test_kept_parts_give_the_bits_of_the_direct_path(answerer, questions, alignment):
    """One image and five instructions, one after the other: the same numbers as encoding the image with each."""
    made = answerer(alignment)
    model, processor = made.model, made.processor
    pixels = processor.pixels(questions[0].open(), "test")
    kept = image_part(model, pixels)
    assert kept.dtype == torch.float32
    for question in questions[:5]:
        ids = processor.encode_chat([{"role": "user", "content": "x"}], 1, question.instruction).get("instruction_ids")
        with torch.inference_mode():
            direct = model.encode(pixels, ids)
        assert torch.equal(project(model, kept, ids), direct["projected"])
    if alignment == "linear":
        with torch.inference_mode():
            assert torch.equal(kept, model.alignment.weight[:, : kept.shape[1]] @ direct["vision"])


def test_the_alignment_of_a_7b_model_gives_one_image_the_same_bits_in_every_batch():
    alignment = LinearAlignment(576, 77)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        alignment.weight += 0.01 * torch.randn(alignment.weight.shape, generator=generator)
        visual, instruction = (torch.randn(3, n, 64, generator=generator) for n in (576, 77))
        kept = torch.cat([alignment.visual_part(visual[i : i + 1]) for i in range(3)])
        assert torch.equal(kept + alignment.text_part(instruction), alignment(visual, instruction))


def test_every_image_is_encoded_once(answerer, questions, monkeypatch):
    made, seen = answerer(), Counter()

    def counted(model, pixels):
        seen.update(row.numpy().tobytes() for row in pixels)
        return image_part(model, pixels)

    monkeypatch.setattr(parts, "image_part", counted)
    answers(made, questions[:9], 2)  # six about one picture and three about another, over the batches' borders
    assert sorted(seen.values()) == [1, 1]


def test_what_does_not_fit_into_the_context_is_named(answerer):
    long = Question("7", "word " * 600, (), None)  # the tiny model's context is 512
    with pytest.raises(Unanswerable, match=r"question 7: its prompt has \d+ tokens, the model's context 512"):
        answerer().answer([Question("6", "short", (), None), long], TOKENS)


def test_nothing_is_loaded_before_the_first_question(answerer, monkeypatch):
    made = answerer()
    monkeypatch.setattr("emma.checkpoints.folder.load_folder", lambda *_: pytest.fail("the weights were loaded"))
    fingerprint = made.fingerprint()
    assert set(fingerprint) == {"weights", "dtype", "template", "instruction", "image_mode"}
    assert fingerprint["dtype"] == "float32"
    assert made.instruction("What is it?\nA. dog\nB. cat") == "What is it?"
