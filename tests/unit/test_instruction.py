"""Instruction rules on the prompts of LLaVA's mix and of the benchmarks, and CLIP ids."""

import gzip

import pytest

from emma.errors import EmmaError
from emma.processing.instruction import CLIP_BPE, ClipTokenizer, InstructionRule, find_clip_bpe, question_of
from emma.processing.template import Turn

LETTER = "Answer with the option's letter from the given choices directly."
PHRASE = "Answer the question using a single word or phrase."


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("What colour is it?", "What colour is it?"),
        (f"What colour is it?\n{PHRASE}", "What colour is it?"),
        (f"What is he doing?\nA. eating\nB. sleeping\nC. running\nD. none\n{LETTER}", "What is he doing?"),
        (
            "What number is it?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
            + PHRASE,
            "What number is it?",
        ),
        (
            "Provide a caption for the provided image.\nReference OCR token: AB",
            "Provide a caption for the provided image.",
        ),
        (f"what brand is this?\nReference OCR token: DAKOTA, A. B\n{PHRASE}", "what brand is this?"),
        ("Is there a dog? Please answer yes or no.", "Is there a dog? Please answer yes or no."),
        ("Is there a dog?\nPlease answer yes or no.", "Is there a dog?"),
        (f"Context: A cell divides.\nWhich is it?\n(A) plant\n(B) animal\n{LETTER}", "Which is it?"),
        ("Context: a test. Question: which shape is red?\nOptions: (A) box (B) ellipse", "which shape is red?"),
        (
            "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.\n"
            "Question: What is x?\nChoices:\n(A) 1\n(B) 2",
            "What is x?",
        ),
        ("Hint: Look left.\nContext: Two lines\nWhich is longer?", "Which is longer?"),
        ("Question: Is it red?", "Is it red?"),
        # what only looks like a format line, an option or a preamble stays
        (
            "What is the answer?\nWhich word is written on the sign?",
            "What is the answer?\nWhich word is written on the sign?",
        ),
        ("Respond to this:\nA. Lincoln was here", "Respond to this:\nA. Lincoln was here"),
        ("Give the bounding box of the man in context: red", "Give the bounding box of the man in context: red"),
        ("Please provide a short description for this region: [0.1, 0.2, 0.3, 0.4].",) * 2,
        # nothing else left: the text itself
        (PHRASE, PHRASE),
        ("Context: only this", "Context: only this"),
        ("A. yes\nB. no", "A. yes\nB. no"),
        ("Question:", "Question:"),
        ("", ""),
        ("  \n ", ""),
    ],
)
def test_question(text, question):
    assert question_of(text) == question


@pytest.mark.parametrize(
    "text", ["Hint:\n\nHint:", "Options:", "A.\nB.", "Context: Question:", PHRASE + "\n" + LETTER, "."]
)
def test_question_is_never_empty(text):
    assert question_of(text)


TURNS = [
    Turn("user", "What is in the picture?\nAnswer the question using a single word or phrase.", images=1),
    Turn("assistant", "Circle"),
    Turn("user", "Region: [0.1, 0.2]"),
    Turn("assistant", "A box"),
    Turn("user", "Is there a person in it?"),
    Turn("assistant", "No"),
]


@pytest.mark.parametrize(
    ("text", "turn", "expected"),
    [
        ("whole", "first", TURNS[0].text),
        ("first_line", "first", "What is in the picture?"),
        ("question", "first", "What is in the picture?"),
        ("question", "last", "Is there a person in it?"),
        ("whole", "shortest", "Region: [0.1, 0.2]"),
        ("released", "shortest", " [0.1, 0.2]"),
    ],
)
def test_select(text, turn, expected):
    assert InstructionRule(text, turn).select(TURNS, "s") == expected


def test_released_rule_depends_on_the_number_of_turns():
    """Two turns: the full text. Else cut at colons, also in a conversation of one question that starts with gpt."""
    rule = InstructionRule.released()
    question = "Context: a test. Question: which?\nOptions: (A)"
    assert rule.select([Turn("user", question), Turn("assistant", "A")], "s") == question
    gpt_first = [Turn("assistant", "Hi"), Turn("user", question), Turn("assistant", "A")]
    assert rule.select(gpt_first, "s") == " a test. Question"
    ending = [Turn("user", "Say this:"), Turn("assistant", "x"), Turn("user", "Why not?"), Turn("assistant", "y")]
    assert rule.select(ending, "s") == ""


def test_shortest_takes_the_first_of_equals_by_the_given_measure():
    turns = [Turn("user", "bb"), Turn("assistant", ""), Turn("user", "cc"), Turn("assistant", "")]
    assert InstructionRule("whole", "shortest").select(turns, "s") == "bb"
    assert InstructionRule("whole", "shortest").select(turns, "s", measure=lambda text: -ord(text[0])) == "cc"


def test_random_is_seeded_by_seed_epoch_and_id_and_avoids_empty_turns():
    rule = InstructionRule("question", "random")
    drawn = {rule.select(TURNS, f"s{i}", epoch=e) for i in range(20) for e in range(2)}
    assert len(drawn) == 3
    assert all(rule.select(TURNS, "s7", 3, 5) == rule.select(TURNS, "s7", 3, 5) for _ in range(3))
    assert len({rule.select(TURNS, "s7", epoch=e) for e in range(20)}) == 3
    assert len({rule.select(TURNS, "s7", seed=s) for s in range(20)}) == 3
    empty = [Turn("user", "", images=1), Turn("assistant", "a"), Turn("user", "Why?"), Turn("assistant", "b")]
    assert {rule.select(empty, i) for i in range(20)} == {"Why?"}
    # recorded, so that another Python or another version of this code does not change a running training silently
    assert "".join(rule.select(TURNS, f"s{i}")[0] for i in range(8)) == "WRWIIRWR"


def test_unknown_values_are_named():
    with pytest.raises(EmmaError, match=r"instruction.text: 'query'.*question"):
        InstructionRule(text="query")
    with pytest.raises(EmmaError, match=r"instruction.turn"):
        InstructionRule(turn="all")
    with pytest.raises(EmmaError, match=r"instruction.over_77"):
        InstructionRule(over_77="chunk")
    with pytest.raises(EmmaError, match=r"\['trun'\]"):
        InstructionRule.from_dict({"trun": "first"})
    rule = InstructionRule("whole", "first", "error")
    assert InstructionRule.from_dict(rule.to_dict()) == rule


def test_clip_ids_are_padded_with_zero_and_cut_with_eot():
    ids, cut = ClipTokenizer(8).encode("a cat")
    assert (ids, cut) == ([49406, 320, 2368, 49407, 0, 0, 0, 0], 0)
    ids, cut = ClipTokenizer(8).encode("one two three four five six seven eight")
    assert (len(ids), ids[0], ids[-1], cut) == (8, 49406, 49407, 2)
    assert ClipTokenizer(8).count("one two three four five six seven eight") == 8
    assert ClipTokenizer(8).count("a cat") == 4
    with pytest.raises(EmmaError, match="sample 's': 10 CLIP tokens, room for 8"):
        ClipTokenizer(8).encode("one two three four five six seven eight", "error", "sample 's'")


def test_clip_vocabulary_of_its_own(tmp_path):
    assert find_clip_bpe("ViT-L-14-336-quickgelu:openai") is None
    assert find_clip_bpe(tmp_path) is None
    (tmp_path / CLIP_BPE).write_bytes(gzip.compress(b"#version\nc a\nca t</w>"))
    tokenizer = ClipTokenizer(6, find_clip_bpe(tmp_path))
    assert tokenizer.vocab_size == 512 + 2 + 2
    assert tokenizer.encode("cat")[0] == [514, 513, 515, 0, 0, 0]
    with pytest.raises(EmmaError, match=CLIP_BPE):
        ClipTokenizer(6, b"not gzip").encode("cat")
