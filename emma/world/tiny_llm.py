"""The world's language model: a small Llama trained on words alone, as Vicuna is before LLaVA's first stage.

It reads a scene told in words, then captions it (plain text) or answers questions about it (in the chat template), and
never sees a picture or a visual token. Scenes that evaluation asks about are not told to it either.
"""

import io
import json
import logging
import math
import random
import time
from pathlib import Path

import sentencepiece
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, DynamicCache, LlamaConfig, LlamaForCausalLM

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
from emma.world.scenes import Scene, draw_scene, draw_scenes

logger = logging.getLogger(__name__)

WIDTH = 128
LAYERS = 4
HEADS = 4
QUESTIONS = 14  # about one scene
TURNS = 8  # of a conversation about one scene
GROUPS = 4  # of questions alike in length
VOCABULARY = 900  # 256 byte pieces, and room for every word of the world as one piece


def write_tokenizer(folder: Path, seed: int) -> None:
    """A sentencepiece BPE tokenizer in the files of Llama's, trained on the world's texts."""
    rng = random.Random(seed)
    lines = [f"{SYSTEM_VICUNA} USER: x ASSISTANT: x"] * 200
    for _ in range(3000):
        scene = draw_scene(rng, held_out=False)
        texts = [tell(scene), caption(scene), *(text for pair in ask(scene, rng) for text in pair)]
        lines += [line for text in texts for line in text.split("\n")]
    model = io.BytesIO()  # not a path, which would be written into the model
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
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
    (folder / "tokenizer.model").write_bytes(model.getvalue())
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


def ask(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """A description and questions with answers, some with the short-answer suffix or as multiple choice."""
    pairs = [(rng.choice(CAPTION_REQUESTS), caption(scene))]
    for question in questions(scene, rng, QUESTIONS):
        kind = rng.random()
        if kind < 0.15:
            text, answer = multiple_choice(question, rng)
            pairs.append((f"{text}\n{LETTER}", answer))
        else:
            pairs.append((question.text + (f"\n{SHORT}" if kind < 0.3 else ""), question.answer))
    return pairs


Tokens = tuple[list[int], list[int]]  # ids and labels, equally long


class Reader:
    """Turns scenes into ids with the project's own templates, cut between the telling and what is asked about it."""

    def __init__(self, tokenizer) -> None:
        self.encoder = SegmentEncoder(tokenizer, image_token_id=len(tokenizer), num_visual_tokens=1)
        self.chat = get_template("vicuna_v1", tokenizer)
        self._start = len(self.telling("."))
        self._known: dict[tuple[str, str], Tokens] = {}

    def conversation(self, told: str, human: str, gpt: str) -> Tokens:
        """One whole chat."""
        turns = [Turn("user", f"{told}\n{human}"), Turn("assistant", gpt)]
        return self.encoder.encode(self.chat.render(turns), bos=self.chat.bos)

    def telling(self, told: str) -> list[int]:
        """The chat up to and with the line that tells the scene. A line break ends a token: chats can be cut here."""
        return self.encoder.encode([Segment(f"{SYSTEM_VICUNA} USER: {told}\n")], bos=self.chat.bos)[0]

    def question(self, human: str, gpt: str) -> Tokens:
        """The chat after that line."""
        if (human, gpt) not in self._known:
            ids, labels = self.conversation(".", human, gpt)
            self._known[human, gpt] = ids[self._start :], labels[self._start :]
        return self._known[human, gpt]

    def plain(self, scene: Scene, told: str) -> tuple[list[int], list[Tokens]]:
        """A telling and its caption as plain text, the form of stage 1."""
        segments = [Segment(told + "\n"), Segment(caption(scene) + "\n", supervised=True)]
        ids, labels = self.encoder.encode(segments, bos=PlainTemplate.bos)
        start = next(i for i, label in enumerate(labels) if label != IGNORE)
        return ids[: start - 1], [(ids[start - 1 :], labels[start - 1 :])]

    def dialogue(self, told: str, asked: list[tuple[str, str]]) -> tuple[list[int], list[Tokens]]:
        """A telling and one chat of many turns about it."""
        turns = [turn for human, gpt in asked for turn in (Turn("user", human), Turn("assistant", gpt))]
        turns[0] = Turn("user", f"{told}\n{turns[0].text}")
        ids, labels = self.encoder.encode(self.chat.render(turns), bos=self.chat.bos)
        start = len(self.telling(told))
        return ids[:start], [(ids[start:], labels[start:])]

    def sample(self, scene: Scene, rng: random.Random, in_turns: float = 0) -> tuple[list[int], list[Tokens]]:
        """A telling and everything that is asked about it; one scene in eight is a plain caption.

        `in_turns`: share of the scenes that are asked about in turns, not side by side.
        """
        told = tell(scene)
        if rng.random() < 0.12:
            return self.plain(scene, told)
        asked = ask(scene, rng)
        if in_turns and rng.random() < in_turns:
            rng.shuffle(asked)
            return self.dialogue(told, asked[:TURNS])
        return self.telling(told), [self.question(*pair) for pair in asked]


def answer_loss(model: LlamaForCausalLM, samples: list[tuple[list[int], list[Tokens]]]) -> torch.Tensor:
    """Mean cross-entropy of the supervised tokens of many one-turn chats.

    The telling is read once a scene and its keys and values are shared by all questions, which do not see each other:
    the same loss as that of separate chats for far less work.
    """
    told, told_mask = _pad([telling for telling, _ in samples])
    read = model.model(told, attention_mask=told_mask, use_cache=True).past_key_values
    asked = [(scene, *tokens) for scene, (_, questions_) in enumerate(samples) for tokens in questions_]
    asked.sort(key=lambda row: len(row[1]))
    size = -(-len(asked) // GROUPS)  # alike in length, so that little is padded
    losses, count = [], 0
    for group in (asked[i : i + size] for i in range(0, len(asked), size)):
        scene = torch.tensor([scene for scene, _, _ in group])
        ids, mask = _pad([ids for _, ids, _ in group])
        labels, _ = _pad([labels for _, _, labels in group], IGNORE)
        cache = DynamicCache()
        for number, layer in enumerate(read.layers):
            cache.update(layer.keys[scene], layer.values[scene], number)
        states = model.model(
            ids,
            attention_mask=torch.cat([told_mask[scene], mask], dim=1),
            position_ids=told_mask.sum(1)[scene, None] + torch.arange(ids.shape[1]),
            past_key_values=cache,
        ).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        supervised = targets != IGNORE
        losses.append(F.cross_entropy(model.lm_head(states[supervised]), targets[supervised], reduction="sum"))
        count += supervised.sum()
    return sum(losses) / count


def _pad(rows: list[list[int]], filler: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded int64[B, L] and the mask int64[B, L] of what is no padding."""
    length = max(map(len, rows))
    values = torch.tensor([row + [filler] * (length - len(row)) for row in rows])
    return values, torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])


def new_model(vocabulary: int) -> LlamaForCausalLM:
    """A Llama drawn at 1 / sqrt(width): with transformers' default of 0.02 it learns nothing for far too long."""
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


def train_llm(folder: Path, seed: int = 0, steps: int = 4000, batch: int = 16) -> dict:
    """Train from nothing and write tokenizer, config and weights to `folder`.

    First questions side by side, which is where looking things up is learned, then (a tenth as many steps) mostly
    conversations in turns. Returns the metrics: steps, seconds, final loss, accuracy by question type on held-out
    scenes told in words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reader = Reader(tokenizer)
    torch.manual_seed(seed)
    model = new_model(len(tokenizer))
    start = time.perf_counter()
    train_phase(model, reader, steps, batch, learning_rate=2e-3, seed=seed)
    loss = train_phase(model, reader, steps // 10, batch, learning_rate=1e-3, seed=seed + 1, in_turns=0.7)
    seconds = time.perf_counter() - start
    model.eval()
    by_type, overall = told_in_words(model, reader)
    model.generation_config.max_new_tokens = 64
    model.save_pretrained(folder)
    return {
        "steps": steps + steps // 10,
        "batch": batch,
        "seconds": round(seconds),
        "loss": round(loss, 4),
        "parameters": sum(p.numel() for p in model.parameters()),
        "told_in_words_accuracy": round(overall, 4),
        "told_in_words_by_type": by_type,
    }


def train_phase(
    model: LlamaForCausalLM,
    reader: Reader,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    in_turns: float = 0,
) -> float:
    """`steps` of AdamW on `batch` fresh scenes each, with a schedule of its own; returns the last loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    rng = random.Random(seed)
    start = time.perf_counter()
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _schedule(step, steps)
        scenes = [draw_scene(rng, held_out=False) for _ in range(batch)]
        loss = answer_loss(model, [reader.sample(scene, rng, in_turns) for scene in scenes])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            logger.info("llm step %d/%d loss %.3f %.0f s", step, steps, loss.item(), time.perf_counter() - start)
        if step % 250 == 249:
            logger.info("told in words: %.3f %s", *reversed(told_in_words(model, reader, number=50)))
    return loss.item()


def _schedule(step: int, steps: int) -> float:
    """Warm-up over 100 steps, constant for a third, then a cosine to nearly nothing."""
    fraction = max(0.0, (step / steps - 0.3) / 0.7)
    return min(1.0, (step + 1) / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fraction)))


@torch.no_grad()
def told_in_words(
    model: LlamaForCausalLM, reader: Reader, number: int = 200, seed: int = 3
) -> tuple[dict[str, float], float]:
    """Accuracy on held-out scenes told in words, by question type and overall; every token must be the argmax."""
    rng = random.Random(seed)
    right: dict[str, list[bool]] = {kind: [] for kind in QUESTION_TYPES}
    for scene in draw_scenes(number, seed, held_out=True):
        asked = questions(scene, rng, 8)
        chats = [reader.conversation(tell(scene), f"{q.text}\n{SHORT}", q.answer) for q in asked]
        ids, _ = _pad([ids for ids, _ in chats])
        labels, _ = _pad([labels for _, labels in chats], IGNORE)
        wrong = (model(ids).logits[:, :-1].argmax(-1) != labels[:, 1:]) & (labels[:, 1:] != IGNORE)
        for question, missed in zip(asked, wrong.any(1).tolist(), strict=True):
            right[question.type].append(not missed)
    everything = [hit for hits in right.values() for hit in hits]
    return {kind: round(sum(h) / len(h), 4) for kind, h in right.items()}, sum(everything) / len(everything)
