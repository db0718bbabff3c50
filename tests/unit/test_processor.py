"""EmmaProcessor: ids and labels on odd text, images, instructions, padding, saving."""

import copy
import gzip
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerFast

from emma.errors import EmmaError
from emma.processing.instruction import CLIP_BPE, InstructionRule
from emma.processing.processor import EmmaProcessor
from emma.processing.template import Segment
from emma.processing.tokens import IGNORE, OverLengthError, SegmentEncoder

N, PLACEHOLDER, EOS = 4, 640, 2
SIZES = {"image_size": 16, "num_visual_tokens": N, "context_length": 77, "image_token_id": PLACEHOLDER}
RED = Image.new("RGB", (16, 16), "red")
BLUE = Image.new("RGB", (16, 16), "blue")
ODD = [
    "",
    "  spaces  ",
    "</s>",
    "<s></s><unk>",
    "a</s>b",
    "<image>",
    "日本語 😀",
    "\n\ndef f():\n\treturn 1",
    "ASSISTANT: hi",
]


@pytest.fixture
def make(tiny_tokenizer):
    def make(tokenizer=None, **choices):
        return EmmaProcessor(tokenizer or copy.deepcopy(tiny_tokenizer), **SIZES | choices)

    return make


@pytest.fixture(params=[False, True], ids=["new", "legacy"])
def llama(request):
    return AutoTokenizer.from_pretrained(
        Path(__file__).parent.parent / "assets" / "parity" / "llm-base", legacy=request.param
    )


@pytest.fixture(scope="module")
def byte_level():
    """A byte-level BPE tokenizer as Qwen's: no dummy prefix, no BOS, a chat template of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["what colour is the circle red blue user assistant"] * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return fast


def sample(*texts, image=None, sample_id="s1"):
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    row = {"id": sample_id, "conversations": turns}
    return row | ({"image": ["x.png"] * len(image), "images": image} if image else {})


def answers(processor, encoded):
    """The supervised text, run by run."""
    runs, labels = [], encoded["labels"].tolist()
    for before, label in zip([IGNORE, *labels], labels, strict=False):
        if label != IGNORE:
            runs = runs if before != IGNORE else [*runs, []]
            runs[-1].append(label)
    return [processor.tokenizer.decode(run, skip_special_tokens=False) for run in runs]


@pytest.mark.parametrize("answer", ODD)
@pytest.mark.parametrize("question", ODD)
def test_any_text_round_trips_with_exactly_the_answers_supervised(make, llama, question, answer):
    processor = make(llama)
    texts = (question, answer, question, answer, "Last?", answer)
    encoded = processor.encode_training(sample(*texts), max_length=10_000)
    ids = encoded["input_ids"]
    assert answers(processor, encoded) == [answer + "</s>"] * 3
    assert ids.tolist().count(EOS) == 3, "only the structure writes EOS"
    assert ids.tolist().count(1) == 1, "one BOS, at the start"
    assert ids[0] == 1
    ends = [i for i in range(len(ids)) if ids[i] == EOS]
    assert encoded["labels"][ends].tolist() == [EOS] * 3, "the last supervised id of every turn is EOS"
    chosen = encoded["labels"] != IGNORE
    assert (encoded["labels"][chosen] == ids[chosen]).all()
    assert processor.length(sample(*texts)) == len(ids)


@pytest.mark.parametrize("text", ["Hi there", "  two  spaces", "日本 😀", "def f(): return 1\n"])
def test_text_only_ids_equal_the_tokenizer_on_the_chat_template(make, llama, text):
    """The generated chat template, encoded the ordinary way, gives the same ids: so servers see what training saw."""
    processor = make(llama)
    ids = processor.encode_training(sample(text, "A one", "More", "B two"), max_length=1000)["input_ids"].tolist()
    messages = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": "A one"},
        {"role": "user", "content": "More"},
        {"role": "assistant", "content": "B two"},
    ]
    rendered = llama.apply_chat_template(messages, chat_template=processor.chat_template, tokenize=False)
    assert llama(rendered).input_ids == ids


def test_generation_prompt_is_a_prefix_of_training(make, llama):
    processor = make(llama)
    encoded = processor.encode_training(sample("<image>\nWhat?", "Red.", image=[RED]), max_length=1000)
    prompt = processor.encode_prompt([{"role": "user", "content": "What?"}], [RED])
    first = int((encoded["labels"] != IGNORE).nonzero()[0])
    assert prompt["input_ids"].tolist() == encoded["input_ids"][:first].tolist()


def test_sentencepiece_prefixes(llama):
    encoder = SegmentEncoder(llama, PLACEHOLDER, N)

    def tokens(*segments, bos=False):
        return llama.convert_ids_to_tokens(encoder.encode(segments, bos=bos)[0])

    assert tokens(Segment("a"), bos=True) == ["<s>", "▁a"]
    assert tokens(Segment(" a")) == ["▁▁", "a"]  # as sentencepiece; Metaspace alone gives "▁a"
    after_eos = tokens(Segment("a"), Segment("</s>", kind="special"), Segment("U"))
    assert after_eos == ["▁a", "</s>", "▁", "U"] if llama.legacy else ["▁a", "</s>", "U"]
    image = encoder.encode([Segment("a "), Segment("", kind="image"), Segment("\na")], bos=False)[0]
    assert llama.convert_ids_to_tokens(image[:2]) == ["▁a", "▁"]
    assert image[2 : 2 + N] == [PLACEHOLDER] * N
    assert llama.convert_ids_to_tokens(image[2 + N :]) == ["▁", "<0x0A>", "a"]
    with pytest.raises(EmmaError, match="<nope>"):
        tokens(Segment("<nope>", kind="special"))


def test_byte_level_tokenizer_and_its_own_template(make, byte_level):
    processor = make(byte_level, template="tokenizer")
    row = sample("<image>\nwhat </s><|im_end|>?", "red <|im_start|>", "blue?", "no", image=[RED])
    encoded = processor.encode_training(row, max_length=1000)
    assert answers(processor, encoded) == ["red <|im_start|><|im_end|>", "no<|im_end|>"]
    special = byte_level.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert [i for i in encoded["input_ids"].tolist() if i in special] == special * 4
    assert processor.decode(encoded["input_ids"], skip_special_tokens=False).startswith("<|im_start|>user\n\nwhat </s>")
    text_only = [{"role": "user", "content": "what colour"}]
    ids = processor.encode_prompt(text_only)["input_ids"].tolist()
    assert ids == byte_level.apply_chat_template(text_only, add_generation_prompt=True)["input_ids"]
    vicuna = make(byte_level).encode_training(sample("what?", "red"), max_length=1000)
    assert answers(make(byte_level), vicuna) == [" red<|im_end|>"]


LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<s>[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' </s>' }}{% endif %}{% endfor %}"
)


def test_template_that_writes_bos_and_spaces_itself(make, llama):
    llama.chat_template = LLAMA2
    processor = make(llama, template="tokenizer")
    encoded = processor.encode_training(sample("What is 1 + 1?", "It is 2.", "More", "No"), max_length=1000)
    messages = [
        {"role": "user", "content": "What is 1 + 1?"},
        {"role": "assistant", "content": "It is 2."},
        {"role": "user", "content": "More"},
        {"role": "assistant", "content": "No"},
    ]
    assert encoded["input_ids"].tolist() == llama.apply_chat_template(messages)["input_ids"]
    assert answers(processor, encoded) == ["It is 2. </s>", "No </s>"]


def test_special_tokens_that_swallow_whitespace(make, byte_level):
    tokenizer = copy.deepcopy(byte_level)
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|user|>", rstrip=True, normalized=False)]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|user|>\n \n{{ m['role'] }} {{ m['content'] }}<|im_end|>\n{% endfor %}"
    )
    processor = make(tokenizer, template="tokenizer")
    messages = [{"role": "user", "content": "red blue"}]
    native = tokenizer.apply_chat_template(messages)["input_ids"]
    assert processor.encode_prompt(messages)["input_ids"].tolist() == native


def test_images_and_instructions_of_a_sample(make):
    processor = make(instruction={"text": "question", "turn": "first"})
    question = "Compare <image> and <image>\nAnswer the question using a single word or phrase."
    row = sample(question, "A", "And now?", "B", image=[RED, BLUE])
    encoded = processor.encode_training(row, max_length=1000)
    assert encoded["input_ids"].tolist().count(PLACEHOLDER) == 2 * N
    assert encoded["pixel_values"].shape == (2, 3, 16, 16)
    assert encoded["pixel_values"][0, 0, 0, 0] > encoded["pixel_values"][1, 0, 0, 0]
    assert encoded["instruction"] == "Compare  and"
    assert encoded["instruction_ids"].shape == (2, 77)
    assert encoded["instruction_ids"][0].tolist() == processor._clip.encode("compare and")[0]
    assert encoded["instruction_ids"].dtype == encoded["input_ids"].dtype == encoded["labels"].dtype == torch.int64
    text_only = processor.encode_training(sample("Hi", "Hello"), max_length=1000)
    assert text_only["pixel_values"].shape == (0, 3, 16, 16)
    assert text_only["instruction_ids"].shape == (0, 77)
    assert text_only["instruction_ids"].dtype == torch.int64
    blind = make(alignment="none").encode_training(row, max_length=1000)
    assert "instruction_ids" not in blind
    assert blind["instruction"] is None


def test_errors_name_the_sample(make):
    processor = make(instruction={"text": "whole", "turn": "first", "over_77": "error"})
    with pytest.raises(EmmaError, match=r"'s1'.*1 image.*0 <image>"):
        processor.encode_training(sample("none", "A", image=[RED]), max_length=100)
    with pytest.raises(EmmaError, match=r"'s1'.*0 opened"):
        processor.encode_training(sample("<image>", "A") | {"image": "a.png"}, max_length=100)
    with pytest.raises(EmmaError, match="'s1' has no answer"):
        processor.encode_training(sample("Q"), max_length=100)
    with pytest.raises(EmmaError, match=r"'s1'.*alternate"):
        processor.encode_training({"id": "s1", "conversations": [{"from": "human", "value": "Q"}] * 2}, max_length=100)
    with pytest.raises(EmmaError, match=r"'s1': .*CLIP tokens"):
        processor.encode_training(sample("<image>" + "word " * 90, "A", image=[RED]), max_length=1000)
    with pytest.raises(EmmaError, match="'s1': the image is 2000 x 2"):
        make(image_mode="square").encode_training(
            sample("<image>Q", "A", image=[Image.new("RGB", (2000, 2))]), max_length=1000
        )
    with pytest.raises(EmmaError, match="'s1': template 'plain'"):
        make(template="plain").encode_training(sample("Q", "A"), max_length=100)


def test_over_length(make):
    processor = make()
    row = sample("<image>\nWhat?", "Red. " * 20, image=[RED])
    whole = processor.encode_training(row, max_length=10_000)
    total = len(whole["input_ids"])
    cut = processor.encode_training(row, max_length=total - 7)
    assert cut["truncated"] == 7
    assert cut["input_ids"].tolist() == whole["input_ids"][:-7].tolist()
    assert cut["labels"].tolist() == whole["labels"][:-7].tolist()
    for policy in ("error", "drop"):
        assert processor.encode_training(row, max_length=total, over_length=policy)["truncated"] == 0
        with pytest.raises(OverLengthError, match=f"'s1' has {total} tokens.*{total - 1}"):
            processor.encode_training(row, max_length=total - 1, over_length=policy)
    end_of_image = max(i for i, token in enumerate(whole["input_ids"].tolist()) if token == PLACEHOLDER) + 1
    assert processor.encode_training(row, max_length=end_of_image)["truncated"] == total - end_of_image
    for inside in (end_of_image - 1, end_of_image - N, 3):
        with pytest.raises(OverLengthError, match=r"'s1'.*cut an image away"):
            processor.encode_training(row, max_length=inside)
    with pytest.raises(EmmaError, match="over_length: 'skip'"):
        processor.encode_training(row, max_length=10, over_length="skip")


def test_instruction_cut_is_counted(make):
    processor = make(instruction={"text": "whole", "turn": "first"})
    encoded = processor.encode_training(sample("<image>" + "word " * 90, "A", image=[RED]), max_length=1000)
    assert encoded["instruction_cut"] == 92 - 77


def test_random_instruction_follows_seed_epoch_and_id(make):
    processor = make()
    row = sample("<image>One?", "1", "Two?", "2", "Three?", "3", image=[RED])
    drawn = {e: processor.encode_training(row, max_length=1000, epoch=e, seed=1)["instruction"] for e in range(12)}
    assert len(set(drawn.values())) == 3
    again = {e: processor.encode_training(row, max_length=1000, epoch=e, seed=1)["instruction"] for e in range(12)}
    assert drawn == again


def test_prompt_instruction(make):
    processor = make(instruction={"text": "first_line", "turn": "first"})
    assert processor.eval_instruction == InstructionRule("first_line", "last")
    messages = [
        {"role": "user", "content": "What is <image>?"},
        {"role": "assistant", "content": "A marker"},
        {"role": "user", "content": "Which colour?\nOne word."},
    ]
    encoded = processor.encode_prompt(messages, [RED])
    assert encoded["instruction"] == "Which colour?"
    assert encoded["input_ids"].tolist().count(PLACEHOLDER) == N, "a typed <image> is text"
    given = processor.encode_prompt(messages, [RED], instruction="as\ngiven")
    assert given["instruction"] == "as\ngiven"
    assert given["instruction_ids"][0].tolist() == processor._clip.encode("as given")[0]
    no_image = processor.encode_prompt(messages)
    assert no_image["instruction"] is None
    assert no_image["instruction_ids"].shape == (0, 77)
    brief = processor.encode_prompt(messages, system="Be brief.")
    assert processor.decode(brief["input_ids"]).startswith("Be brief. USER: What is <image>?")


def test_pad_masks_by_length_whatever_the_pad_id(make):
    processor = make()
    processor.tokenizer.pad_token = "</s>"  # the pad id also occurs as a real, supervised id
    rows = [
        processor.encode_training(sample("<image>Q", "A", image=[RED]), max_length=1000),
        processor.encode_training(sample("a longer question " * 3, "B"), max_length=1000),
        processor.encode_training(sample("<image><image>x", "C", image=[BLUE, RED]), max_length=1000),
    ]
    lengths = [len(row["input_ids"]) for row in rows]
    for side in ("right", "left"):
        batch = processor.pad(rows, side)
        assert batch["attention_mask"].sum(1).tolist() == lengths
        assert batch["pixel_values"].shape == (3, 3, 16, 16)
        assert batch["instruction_ids"].shape == (3, 77)
        for i, row in enumerate(rows):
            kept = batch["attention_mask"][i].bool()
            assert (batch["input_ids"][i][kept] == row["input_ids"]).all()
            assert (batch["labels"][i][kept] == row["labels"]).all()
            assert (batch["labels"][i][~kept] == IGNORE).all()
            padding_first = not bool(kept[0])
            assert padding_first == (side == "left" and lengths[i] < max(lengths))
    with pytest.raises(EmmaError, match="'middle'"):
        processor.pad(rows, "middle")
    assert "labels" not in processor.pad([processor.encode_prompt([{"role": "user", "content": "Q"}])])


def test_call_on_finished_prompts(make):
    processor = make()
    messages = [{"role": "user", "content": "Which colour?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "Which colour?"}]}]
    )
    batch = processor(RED, text, "Which colour?")
    expected = processor.encode_prompt(messages, [RED])
    for key in ("input_ids", "instruction_ids", "pixel_values"):
        assert torch.equal(batch[key].reshape(expected[key].shape), expected[key])
    two = processor([RED, BLUE], [text, "Short <image></s>"], ["Which colour?", "Short"])
    assert two["attention_mask"][1, 0] == 0
    assert two["input_ids"][1, -1] == EOS, "in a finished prompt </s> is the token"
    assert two["instruction_ids"].shape == (2, 77)
    with pytest.raises(EmmaError, match="instruction="):
        processor(RED, text)
    with pytest.raises(EmmaError, match=r"text 0 has 1 <image>.*2 image"):
        processor([RED, BLUE], text, "q")
    with pytest.raises(EmmaError, match="2 texts but images for 1"):
        processor([RED], [text, text], "q")
    assert "instruction_ids" not in make(alignment="none")(RED, text)
    tokenized = processor.apply_chat_template(messages, tokenize=True)
    assert tokenized["attention_mask"].shape == tokenized["input_ids"].shape


def test_decode_leaves_placeholders_out(make):
    processor = make()
    ids = processor.encode_prompt([{"role": "user", "content": "Hi"}], [RED], system="S")["input_ids"]
    assert processor.decode(ids).startswith("S USER:")
    assert processor.decode(torch.stack([ids, ids])) == [processor.decode(ids)] * 2
    assert processor.decode([]) == ""


def test_save_and_load(make, llama, tmp_path):
    processor = make(
        llama,
        context_length=12,
        alignment="cross_attention",
        image_mode="square",
        instruction=InstructionRule.released(),
        eval_instruction={"text": "first_line", "turn": "last"},
        clip_bpe=gzip.compress(b"#version\nc a\nca t</w>"),
    )
    folder = tmp_path / "any name"
    processor.save_pretrained(folder)
    loaded = EmmaProcessor.from_pretrained(folder)
    assert (folder / CLIP_BPE).is_file()
    assert (folder / "chat_template.jinja").read_text() == processor.chat_template == loaded.chat_template
    assert loaded.to_dict() == processor.to_dict()
    row = sample("<image>cat", "A", "B?", "C", image=[RED])
    for other in (loaded, pickle.loads(pickle.dumps(processor))):
        assert other.clip_bpe == processor.clip_bpe
        one, two = processor.encode_training(row, max_length=1000), other.encode_training(row, max_length=1000)
        assert all(
            torch.equal(one[key], two[key]) for key in ("input_ids", "labels", "pixel_values", "instruction_ids")
        )
    (folder / "processor_config.json").unlink()
    with pytest.raises(EmmaError, match=r"no processor_config.json"):
        EmmaProcessor.from_pretrained(folder)


def test_save_and_load_of_the_tokenizers_own_template(make, byte_level, tmp_path):
    processor = make(byte_level, template="tokenizer")
    processor.save_pretrained(tmp_path)
    loaded = EmmaProcessor.from_pretrained(tmp_path)
    row = sample("<image>what", "red", image=[RED])
    assert torch.equal(
        processor.encode_training(row, max_length=1000)["labels"],
        loaded.encode_training(row, max_length=1000)["labels"],
    )


def test_from_model_config_checks_the_clip_vocabulary(tiny_clip, tiny_tokenizer):
    from emma.model import EmmaConfig

    config = EmmaConfig(tower_config=tiny_clip[0], text_config={"model_type": "llama", "vocab_size": 640})
    processor = EmmaProcessor.from_model_config(config, tiny_tokenizer, template="plain")
    assert (processor.num_visual_tokens, processor.context_length, processor.image_token_id) == (4, 77, 640)
    with pytest.raises(EmmaError, match=f"49408.*516.*{CLIP_BPE}"):
        EmmaProcessor.from_model_config(config, tiny_tokenizer, clip_bpe=gzip.compress(b"#version\nc a\nca t</w>"))


def test_bad_choices(make):
    with pytest.raises(EmmaError, match="image_mode: 'crop'"):
        make(image_mode="crop")
    with pytest.raises(EmmaError, match="template 'v2'"):
        make(template="v2")
