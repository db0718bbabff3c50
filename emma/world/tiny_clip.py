"""The world's CLIP: a small open_clip model trained on pictures and alt texts with open_clip's contrastive loss."""

import gzip
import json
import logging
import random
import time
from itertools import pairwise
from pathlib import Path

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer, basic_clean, bytes_to_unicode, whitespace_clean
from safetensors.torch import save_file
from torchvision.transforms.functional import pil_to_tensor

from emma.world.language import CAPTION_REQUESTS, LETTER, QUESTION_TYPES, SHORT, alt_text, caption
from emma.world.render import SIZE, render
from emma.world.scenes import Scene, draw_scene, draw_scenes

logger = logging.getLogger(__name__)

CONTEXT_LENGTH = 32  # text positions, M
MEAN = open_clip.OPENAI_DATASET_MEAN
STD = open_clip.OPENAI_DATASET_STD


def model_config(vocab_size: int) -> dict:
    """open_clip's JSON form: 48x48 images in 8x8 patches (N = 36), width 96, three blocks a tower."""
    return {
        "embed_dim": 64,
        "quick_gelu": True,
        "vision_cfg": {"image_size": SIZE, "layers": 3, "width": 96, "head_width": 24, "patch_size": 8},
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": vocab_size,
            "width": 96,
            "heads": 4,
            "layers": 3,
        },
    }


def world_words() -> set[str]:
    """Every word that the world's texts contain."""
    rng = random.Random(0)
    texts = [SHORT, LETTER, *CAPTION_REQUESTS]
    for _ in range(500):
        scene = draw_scene(rng, held_out=False)
        texts += [caption(scene), alt_text(scene, rng)]
        texts += [q.text + " " + q.answer for ask in QUESTION_TYPES.values() if (q := ask(scene, rng))]
    words = set()
    tokenizer = SimpleTokenizer()
    for text in texts:
        words |= set(tokenizer.pat.findall(whitespace_clean(basic_clean(text)).lower()))
    return words


def write_bpe(path: Path) -> None:
    """CLIP's BPE file cut to the merges that the world's words use: any text still encodes, by bytes if need be."""
    full = SimpleTokenizer()
    byte_letters = bytes_to_unicode()
    used = set()
    for word in world_words():
        letters = "".join(byte_letters[b] for b in word.encode())
        parts = (*letters[:-1], letters[-1] + "</w>")
        while len(parts) > 1:
            pair = min(pairwise(parts), key=lambda p: full.bpe_ranks.get(p, float("inf")))
            if pair not in full.bpe_ranks:
                break
            used.add(pair)
            parts = _merge(parts, pair)
    lines = ["#version: 0.2 (merges of CLIP's BPE that the tiny world's words use)"]
    lines += [" ".join(pair) for pair in sorted(used, key=full.bpe_ranks.__getitem__)]
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


def _merge(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged, i = [], 0
    while i < len(parts):
        if parts[i : i + 2] == pair:
            merged.append(pair[0] + pair[1])
            i += 2
        else:
            merged.append(parts[i])
            i += 1
    return tuple(merged)


def pixels(scenes: list[Scene], rng: random.Random) -> torch.Tensor:
    """Pictures of scenes, normalised as CLIP does: float[B, 3, SIZE, SIZE]."""
    images = torch.stack([pil_to_tensor(render(scene, rng)) for scene in scenes]).float() / 255
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@torch.no_grad()
def recall_at_1(model, tokenizer: SimpleTokenizer, number: int = 256, seed: int = 4) -> float:
    """Share of held-out pictures whose own alt text, among `number`, is the nearest."""
    rng = random.Random(seed)
    scenes = draw_scenes(number, seed, held_out=True)
    image = model.encode_image(pixels(scenes, rng), normalize=True)
    text = model.encode_text(tokenizer([alt_text(s, rng) for s in scenes], CONTEXT_LENGTH), normalize=True)
    return ((image @ text.T).argmax(1) == torch.arange(number)).float().mean().item()


def train_clip(folder: Path, seed: int = 0, steps: int = 400, batch: int = 128) -> dict:
    """Train from nothing and write `open_clip_config.json`, `open_clip_model.safetensors` and the BPE file to `folder`.

    Returns the metrics: steps, seconds, final loss, recall@1 on held-out scenes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bpe = folder / "bpe_simple_vocab.txt.gz"
    write_bpe(bpe)
    tokenizer = SimpleTokenizer(bpe_path=str(bpe), context_length=CONTEXT_LENGTH)
    torch.manual_seed(seed)
    config = model_config(tokenizer.vocab_size)
    model = open_clip.CLIP(**config, nonscalar_logit_scale=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps, pct_start=0.1)
    loss_function = open_clip.ClipLoss()
    rng = random.Random(seed)
    start = time.perf_counter()
    for step in range(steps):
        scenes = [draw_scene(rng, held_out=False) for _ in range(batch)]
        texts = tokenizer([alt_text(s, rng) for s in scenes], CONTEXT_LENGTH)
        image, text, scale = model(pixels(scenes, rng), texts)
        loss = loss_function(image, text, scale)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            logger.info("clip step %d/%d loss %.3f %.0f s", step, steps, loss.item(), time.perf_counter() - start)
    model.eval()
    recall = recall_at_1(model, tokenizer)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    preprocess = {"mean": list(MEAN), "std": list(STD)}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2) + "\n"
    )
    return {
        "steps": steps,
        "batch": batch,
        "seconds": round(time.perf_counter() - start),
        "loss": round(loss.item(), 4),
        "recall_at_1_of_256": round(recall, 4),
    }
