"""The world's language model: a small Llama trained on words alone, as Vicuna is before LLaVA's first stage.

It reads a scene told in words, then captions it (plain text) or answers questions about it (in the chat template), and
never sees a picture or a visual token. Scenes that evaluation asks about are not told to it either.
"""

import json
import logging
import math
import random
import time
from pathlib import Path

import sentencepiece
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from emma.processing.template import SYSTEM_VICUNA, PlainTemplate, Segment, Turn, get_template
from emma.processing.tokens import IGNORE, SegmentEncoder
from emma.world.language import (
    CAPTION_REQUESTS,
    LETTER,
    QUESTION_TYPES,
    SHORT,
    caption,
    multiple_choice,
    questions,
    tell,
)
from emma.world.scenes import MAX_OBJECTS, Scene, draw_scene, draw_scenes

logger = logging.getLogger(__name__)

WIDTH = 128
LAYERS = 4
HEADS = 4
QUESTIONS = 12  # in one conversation
VOCABULARY = 900  # 256 byte pieces, and room for every word of the world as one piece


def write_tokenizer(folder: Path, seed: int) -> None:
    """A sentencepiece BPE tokenizer in the files of Llama's, trained on the world's texts."""
    rng = random.Random(seed)
    lines = [f"{SYSTEM_VICUNA} USER: x ASSISTANT: x"] * 200
    for _ in range(3000):
        scene = draw_scene(rng, held_out=False)
        turns = _turns(scene, rng)
        lines += [caption(scene), *(line for turn in turns for line in turn.text.split("\n") if line)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=VOCABULARY,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "padding_side": "right",
        "legacy": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _turns(scene: Scene, rng: random.Random) -> list[Turn]:
    """A conversation about a scene that its first turn tells: questions, multiple choice, or a description."""
    kind = rng.random()
    if kind < 0.06:
        asked = [(rng.choice(CAPTION_REQUESTS), caption(scene))]
    elif kind < 0.25:
        choices = [multiple_choice(q, rng) for q in questions(scene, rng, QUESTIONS // 2)]
        asked = [(f"{text}\n{LETTER}", letter) for text, letter in choices]
    else:
        asked = [(q.text, q.answer) for q in questions(scene, rng, QUESTIONS)]
        asked[0] = (f"{asked[0][0]}\n{SHORT}", asked[0][1])
    asked[0] = (f"{tell(scene, rng)}\n{asked[0][0]}", asked[0][1])
    return [turn for human, gpt in asked for turn in (Turn("user", human), Turn("assistant", gpt))]


class Reader:
    """Turns scenes into ids and labels with the project's own templates."""

    def __init__(self, tokenizer):
        self.encoder = SegmentEncoder(tokenizer, image_token_id=len(tokenizer), num_visual_tokens=1)
        self.chat = get_template("vicuna_v1", tokenizer)

    def sample(self, scene: Scene, rng: random.Random) -> tuple[list[int], list[int]]:
        """One row in eight is a plain text to continue with a caption, the others are conversations."""
        if rng.random() < 0.12:
            segments = [Segment(tell(scene, rng) + "\n"), Segment(caption(scene) + "\n", supervised=True)]
            return self.encoder.encode(segments, bos=PlainTemplate.bos)
        return self.conversation(_turns(scene, rng))

    def conversation(self, turns: list[Turn]) -> tuple[list[int], list[int]]:
        return self.encoder.encode(self.chat.render(turns), bos=self.chat.bos)

    @staticmethod
    def pad(rows: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Right-padded ids and labels, int64[B, L]. Causal attention never looks at padding on the right."""
        length = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([row + [0] * (length - len(row)) for row, _ in rows])
        labels = torch.tensor([row + [IGNORE] * (length - len(row)) for _, row in rows])
        return ids, labels


def new_model(vocabulary: int) -> LlamaForCausalLM:
    """A Llama drawn at 1 / sqrt(width): with transformers' default of 0.02 attention stays uniform for far too long."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=WIDTH * 8 // 3 // 8 * 8,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            initializer_range=WIDTH**-0.5,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )


def most_objects(step: int, steps: int) -> int:
    """The curriculum: scenes of one object first, of up to `MAX_OBJECTS` after an eighth of all steps."""
    return min(MAX_OBJECTS, 1 + (step * 8 * (MAX_OBJECTS - 1)) // steps)


def _scene(rng: random.Random, objects: int) -> Scene:
    while len((scene := draw_scene(rng, held_out=False)).objects) > objects:
        pass
    return scene


def train_llm(folder: Path, seed: int = 0, steps: int = 4000, batch: int = 8, learning_rate: float = 1.5e-3) -> dict:
    """Train from nothing and write tokenizer, config and weights to `folder`.

    Returns the metrics: steps, seconds, final loss, accuracy by question type on held-out scenes told in words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reader = Reader(tokenizer)
    torch.manual_seed(seed)
    model = new_model(len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    rng = random.Random(seed)
    start = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _schedule(step, steps)
        scenes = [_scene(rng, most_objects(step, steps)) for _ in range(batch)]
        ids, labels = reader.pad([reader.sample(scene, rng) for scene in scenes])
        hidden = model.model(ids, use_cache=False).last_hidden_state[:, :-1]
        supervised = labels[:, 1:] != IGNORE
        loss = F.cross_entropy(model.lm_head(hidden[supervised]), labels[:, 1:][supervised])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            logger.info("llm step %d/%d loss %.3f %.0f s", step, steps, loss.item(), time.perf_counter() - start)
    seconds = time.perf_counter() - start
    model.eval()
    by_type, overall = told_in_words(model, reader)
    model.generation_config.max_new_tokens = 64
    model.save_pretrained(folder)
    return {
        "steps": steps,
        "batch": batch,
        "seconds": round(seconds),
        "loss": round(loss.item(), 4),
        "parameters": sum(p.numel() for p in model.parameters()),
        "told_in_words_accuracy": round(overall, 4),
        "told_in_words_by_type": by_type,
    }


def _schedule(step: int, steps: int) -> float:
    """Warm-up over 100 steps, constant for a third, then a cosine to nearly nothing."""
    fraction = max(0.0, (step / steps - 0.3) / 0.7)
    return min(1.0, (step + 1) / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fraction)))


@torch.no_grad()
def told_in_words(
    model: LlamaForCausalLM, reader: Reader, number: int = 200, seed: int = 3
) -> tuple[dict[str, float], float]:
    """Accuracy on questions about held-out scenes told in words: by type, and overall. Every token must be the argmax."""
    rng = random.Random(seed)
    right = {kind: [] for kind in QUESTION_TYPES}
    for scene in draw_scenes(number, seed, held_out=True):
        asked = questions(scene, rng, 8)
        for question in asked:
            human = f"{tell(scene, rng)}\n{question.text}\n{SHORT}"
            ids, labels = reader.pad(
                [reader.conversation([Turn("user", human), Turn("assistant", question.answer)])]
            )
            supervised = labels[:, 1:] != IGNORE
            guess = model(ids).logits[:, :-1].argmax(-1)
            right[question.type].append(bool((guess[supervised] == labels[:, 1:][supervised]).all()))
    everything = [hit for hits in right.values() for hit in hits]
    return {kind: round(sum(h) / len(h), 4) for kind, h in right.items()}, sum(everything) / len(everything)
