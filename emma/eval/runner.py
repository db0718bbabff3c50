"""Ask a model every question of a benchmark, batched and resumable, then score the answers and write the report."""

import hashlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from emma.errors import EmmaError
from emma.eval.answers import read_answers
from emma.eval.benchmark import Benchmark, Item, check_image_control, find_benchmark, title
from emma.eval.pictures import describe, open_picture
from emma.eval.predictions import Predictions
from emma.eval.report import write_report

if TYPE_CHECKING:
    from emma import EmmaForConditionalGeneration, EmmaProcessor

log = logging.getLogger(__name__)


def evaluate(
    benchmark: str | Benchmark,
    model: "EmmaForConditionalGeneration",
    processor: "EmmaProcessor",
    data: str | Path,
    output: str | Path,
    *,
    folder: str | Path,
    batch_size: int = 16,
    image_control: str = "none",
    max_new_tokens: int | None = None,
    images: str | Path | None = None,
    restart: bool = False,
) -> dict[str, Any]:
    """Run, score and report one benchmark; returns the report, which is also `output/report.json` and `report.md`.

    `folder` is the checkpoint that `model` was loaded from (its weights are hashed). Answers already in `output` are
    kept when they were made the same way, and refused otherwise. `image_control="blank"` shows the CLIP mean colour in
    place of every image. `max_new_tokens` None takes the benchmark's own. Decoding is greedy.

    Raises `EmmaError` for missing files, answers of another fingerprint, and, after all other questions are answered,
    for images that cannot be read.
    """
    if isinstance(benchmark, str):
        benchmark = find_benchmark(benchmark)
    check_image_control(image_control)
    if batch_size < 1:
        raise EmmaError(f"batch_size={batch_size}: expected at least 1")
    data, output = Path(data), Path(output)
    items = benchmark.items(data, Path(images) if images else None)
    tokens = max_new_tokens or benchmark.max_new_tokens
    fingerprint = make_fingerprint(benchmark, items, model, processor, Path(folder), image_control, tokens)
    predictions = Predictions(output, fingerprint, restart)
    todo = [item for item in items if item.id not in predictions.done]
    failed = _answer_all(
        title(benchmark, data, image_control), todo, predictions, model, processor, batch_size, image_control, tokens
    )
    if failed:
        raise EmmaError(
            f"{benchmark.title}: {len(failed)} of {len(items)} questions could not be asked: {'; '.join(failed[:3])}"
            f"{' ...' if len(failed) > 3 else ''}. Mend them and run again: {len(predictions.done)} answers are kept"
        )
    score = benchmark.score(data, read_answers(predictions.path))
    return write_report(benchmark, score, predictions, fingerprint, data, Path(folder), image_control)


def make_fingerprint(
    benchmark: Benchmark,
    items: list[Item],
    model: "EmmaForConditionalGeneration",
    processor: "EmmaProcessor",
    folder: Path,
    image_control: str,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Everything that the answers depend on. Batch size, device and number of processes are left out: answers do not
    depend on them (in float32; under bfloat16 a near tie may fall either way, so the report names them)."""
    from emma.checkpoints.provenance import weights_hash

    return {
        "benchmark": benchmark.name,
        "weights": weights_hash(folder),
        "dtype": str(model.llm.get_input_embeddings().weight.dtype).removeprefix("torch."),
        "prompt": {"template": processor.template, "questions": questions_hash(benchmark, items)},
        "instruction": processor.eval_instruction.to_dict() if processor.instruction_aware else None,
        "image_mode": processor.image_mode,
        "control": {"image": image_control, "instruction": "none"},
        "generation": {"do_sample": False, "num_beams": 1, "max_new_tokens": max_new_tokens},
    }


def questions_hash(benchmark: Benchmark, items: list[Item]) -> str:
    """sha256 over ids, prompts, question fields, and names and sizes of images, in an order of its own.

    Raises `EmmaError` when images are missing, before any work is done.
    """
    rows, missing = [], []
    for item in sorted(items, key=lambda item: item.id):
        pictures = []
        for path in item.images:
            try:
                pictures.append(describe(path))
            except FileNotFoundError:
                missing.append(f"{path} (question {item.id})")
        rows.append((item.id, item.prompt, item.question, pictures))
    if missing:
        raise EmmaError(f"{benchmark.title}: {len(missing)} images are missing, the first is {missing[0]}")
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _answer_all(
    name: str,
    todo: list[Item],
    predictions: Predictions,
    model: "EmmaForConditionalGeneration",
    processor: "EmmaProcessor",
    batch_size: int,
    image_control: str,
    max_new_tokens: int,
) -> list[str]:
    """Answer `todo`, longest prompts first so that a batch is alike in length; the reasons of those that failed."""
    lengths = {item.id: len(processor.tokenizer(item.prompt).input_ids) for item in todo}
    todo = sorted(todo, key=lambda item: (-len(item.images), -lengths[item.id], item.id))
    bar = tqdm(
        desc=name,
        total=len(predictions.done) + len(todo),
        initial=len(predictions.done),
        unit="question",
        mininterval=0.1 if sys.stderr.isatty() else 10,
        disable=not todo,
    )
    failed = []
    with bar:
        for start in range(0, len(todo), batch_size):
            began = time.perf_counter()
            rows, encoded = [], []
            for item in todo[start : start + batch_size]:
                try:
                    row, inputs = encode(item, processor, image_control)
                except EmmaError as error:
                    failed.append(f"question {item.id}: {error}")
                else:
                    rows.append(row)
                    encoded.append(inputs)
            if encoded:
                for row, (text, finished) in zip(
                    rows, generate(model, processor, encoded, max_new_tokens), strict=True
                ):
                    row |= {"text": text, "finished": finished}
                seconds = round(time.perf_counter() - began, 3)
                timing = {"questions": len(rows), "seconds": seconds, "batch_size": batch_size}
                predictions.append(rows, timing | {"device": str(model.device.type)})
            bar.update(len(rows))
    return failed


def encode(item: Item, processor: "EmmaProcessor", image_control: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what is recorded of the question, its model inputs). The instruction is what the checkpoint's evaluation rule
    makes of the benchmark's question field. Raises `EmmaError` for an unreadable image."""
    from PIL import Image

    if image_control == "blank":
        colour = tuple(round(255 * channel) for channel in processor.image_mean)
        pictures = [Image.new("RGB", (processor.image_size, processor.image_size), colour) for _ in item.images]
    else:
        pictures = [open_picture(picture) for picture in item.images]
    instruction = processor.eval_instruction.apply(item.question) if processor.instruction_aware else None
    messages = [{"role": "user", "content": item.prompt}]
    inputs = processor.encode_prompt(messages, pictures, instruction=instruction)
    row = {"id": item.id, "prompt": item.prompt, "instruction": instruction}
    return row | {"instruction_cut": inputs.get("instruction_cut", 0)}, inputs


def generate(
    model: "EmmaForConditionalGeneration",
    processor: "EmmaProcessor",
    encoded: list[dict[str, Any]],
    max_new_tokens: int,
) -> list[tuple[str, bool]]:
    """Greedy answers to encoded prompts, padded on the left: (text stripped of outer whitespace, whether it ended by
    itself rather than by `max_new_tokens`)."""
    import torch

    batch = processor.pad(encoded, side="left").to(model.device)
    with torch.inference_mode():
        output = model.generate(**batch, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens)
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    answers = []
    for ids in output[:, batch["input_ids"].shape[1] :].tolist():
        length = next((i for i, id in enumerate(ids) if id in ends), None)
        answers.append((processor.decode(ids[:length]).strip(), length is not None))
    return answers
