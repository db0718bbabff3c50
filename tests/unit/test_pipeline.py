"""transformers' own ways in: pipeline("image-text-to-text"), the Auto classes, apply_chat_template, the processor."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

import emma
import emma.model
from emma.checkpoints.folder import save_folder
from emma.errors import EmmaError

RED, BLUE = Image.new("RGB", (24, 16), "red"), Image.new("RGB", (16, 16), "blue")
QUESTION = "What colour is the large circle?\nAnswer the question using a single word or phrase."
GREEDY = {"max_new_tokens": 6, "do_sample": False}


def chat(text, *images):
    pictures = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]


CHATS = [chat(QUESTION, RED), chat("Hello"), chat("And this one, what is it?", BLUE), chat("Which differ?", RED, BLUE)]


@pytest.fixture(scope="module")
def folder(tiny_clip, tiny_tokenizer, tmp_path_factory):
    import copy

    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"vocab_size": 640, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    llm = LlamaForCausalLM(LlamaConfig(**sizes, **ids, initializer_range=0.2))
    model = emma.EmmaForConditionalGeneration.from_parts(llm, tiny_clip)
    torch.nn.init.normal_(model.alignment.weight, std=0.5)
    processor = emma.EmmaProcessor.from_model_config(model.config, copy.deepcopy(tiny_tokenizer))
    save_folder(tmp_path_factory.mktemp("pipeline") / "any name", model, processor, {})
    return tmp_path_factory.getbasetemp() / "pipeline0" / "any name"


@pytest.fixture(scope="module")
def pipe(folder):
    return pipeline("image-text-to-text", model=str(folder), device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def expected(folder):
    """The answer to each chat, asked alone and in this project's own way."""
    model, processor = emma.load(folder, device="cpu")
    answers = []
    for messages in CHATS:
        parts = messages[0]["content"]
        images = [part["image"] for part in parts if part["type"] == "image"]
        prompt = processor.encode_prompt([{"role": "user", "content": parts[-1]["text"]}], images)
        inputs = processor.pad([prompt], "left")
        answers.append(processor.decode(model.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :]))
    assert len(set(answers)) == len(CHATS), "they must differ, or nothing is tested"
    return answers


def new_text(record):
    return record[0]["generated_text"] if isinstance(record, list) else record["generated_text"]


def test_one_chat(pipe, expected):
    assert isinstance(pipe.model, emma.EmmaForConditionalGeneration)
    assert new_text(pipe(text=CHATS[0], return_full_text=False, **briefly())) == expected[0]
    whole = new_text(pipe(text=CHATS[0], **briefly()))
    assert whole[-1] == {"role": "assistant", "content": expected[0]}


def briefly():
    return {"max_new_tokens": 6, "generate_kwargs": {"do_sample": False}}


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_batches_answer_as_one_by_one(pipe, expected, batch_size):
    found = pipe(text=CHATS, batch_size=batch_size, return_full_text=False, **briefly())
    assert [new_text(record) for record in found] == expected


def test_generation_arguments(pipe, expected):
    sampled = {"do_sample": True, "num_return_sequences": 3, "temperature": 2.0}
    torch.manual_seed(1)
    answers = pipe(text=CHATS[3], return_full_text=False, max_new_tokens=6, generate_kwargs=sampled)
    assert len({record["generated_text"] for record in answers}) > 1
    beams = pipe(text=CHATS[0], return_full_text=False, max_new_tokens=1, generate_kwargs={"num_beams": 2})
    assert expected[0].startswith(new_text(beams)[:1])


def test_finished_prompts_need_the_instruction(pipe, expected):
    prompt = pipe.processor.apply_chat_template(CHATS[0])
    with pytest.raises(EmmaError, match="pass instruction="):
        pipe(images=RED, text=prompt)
    question = "What colour is the large circle?"
    found = pipe(images=RED, text=prompt, instruction=question, return_full_text=False, **briefly())
    assert new_text(found) == expected[0]


def test_auto_classes_and_the_instruction_rule(folder, expected):
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor.apply_chat_template(CHATS[0], tokenize=True, return_dict=True, return_tensors="pt")
    bare, _ = processor._clip.encode("What colour is the large circle?")
    assert inputs["instruction_ids"].tolist() == [bare], "the question, without how to answer it"
    answer = model.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(answer) == expected[0]
    assert torch.equal(processor.apply_chat_template(CHATS[0], tokenize=True, return_dict=False), inputs["input_ids"])
    together = processor.apply_chat_template(CHATS, tokenize=True, return_dict=True)
    assert together["instruction_ids"].shape == (4, 77)
    assert together["attention_mask"][1, 0] == 0, "prompts are padded on the left"
    assert processor.apply_chat_template(CHATS)[1] == processor.apply_chat_template(CHATS[1])
    other = processor.apply_chat_template(CHATS[0], tokenize=True, instruction="Shapes?")
    assert other["instruction_ids"].tolist() == [processor._clip.encode("Shapes?")[0]]


def test_pictures_from_files(folder, tmp_path):
    processor = AutoProcessor.from_pretrained(folder)
    RED.save(tmp_path / "red.png")
    wanted = processor.apply_chat_template(CHATS[0], tokenize=True)["pixel_values"]
    file = str(tmp_path / "red.png")
    for key in ("path", "url", "image"):
        messages = [{"role": "user", "content": [{"type": "image", key: file}, {"type": "text", "text": "Q"}]}]
        assert torch.equal(processor.apply_chat_template(messages, tokenize=True)["pixel_values"], wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"add_generation_prompt": False}, "the last message is the user's"),
        ({"continue_final_message": True}, "the last message is the user's"),
        ({"tools": [{}]}, "tools=.* is not possible"),
        ({"processor_kwargs": {"truncation": True}}, "truncation=True is not possible"),
        ({"return_tensors": "np"}, "return_tensors='np' is not possible"),
    ],
)
def test_what_the_chat_template_cannot_do(folder, arguments, message):
    processor = AutoProcessor.from_pretrained(folder)
    with pytest.raises(EmmaError, match=message):
        processor.apply_chat_template(CHATS[0], tokenize=True, **arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"type": "video", "video": "x"}], "content of type video; there are text and image"),
        ([{"type": "image"}], "without image, path, url or base64"),
        ([{"type": "image", "path": "nowhere.png"}], r"nowhere\.png does not exist"),
        ([{"type": "image", "base64": "???"}], "its image cannot be read"),
    ],
)
def test_messages_that_cannot_be_read(folder, content, message):
    processor = AutoProcessor.from_pretrained(folder)
    with pytest.raises(EmmaError, match=message):
        processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True)
