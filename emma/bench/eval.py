"""Questions a second of the evaluation runner: by batch size, with images encoded once and for each question anew."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from tqdm import tqdm

from emma.bench.machine import device_name
from emma.eval.answerers.emma import EmmaAnswerer
from emma.eval.answering import Answered, Question
from emma.eval.asking import Asking
from emma.eval.benchmarks import BENCHMARKS
from emma.eval.controls import Controls
from emma.eval.predictions import Predictions
from emma.eval.questions import groups_by_picture, make_questions
from emma.world.sets import write_questions

QUESTIONS_PER_IMAGE = 6
ROUNDS = 3


class ImagePerQuestion(EmmaAnswerer):
    """What is compared with: every question brings its image, which goes through the tower each time."""

    def answer(self, questions: Sequence[Question], max_new_tokens: int, stop: Sequence[str] = ()) -> list[Answered]:
        prompts = [
            self.processor.encode_prompt(
                [{"role": "user", "content": question.prompt}], question.open(), instruction=question.instruction
            )
            for question in questions
        ]
        batch = self.processor.pad(prompts, side="left").to(self.model.device)
        with torch.inference_mode():
            output = self.model.generate(**batch, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens)
        new = output[:, batch["input_ids"].shape[1] :].tolist()
        return [Answered(self.processor.decode(ids).strip(), finished=True) for ids in new]


def answering(model: str | Path, images: int, batch_sizes: Sequence[int]) -> Iterator[dict]:
    """One line a setting, then the best one against batch 1 with an image per question.

    Six questions on each of `images` held-out scenes of the tiny world. The rounds go through all settings in turn, so
    that noise hits all alike; the first, on which everything is warmed up, does not count.
    """
    benchmark = BENCHMARKS["world"]
    once, anew = EmmaAnswerer(model), ImagePerQuestion(model)
    with TemporaryDirectory(prefix="emma-bench-") as name:
        folder = Path(name)
        write_questions(folder / "data", images, seed=1, per_scene=QUESTIONS_PER_IMAGE)
        items = benchmark.items(folder / "data", None)
        questions = [
            q for group in groups_by_picture(make_questions(benchmark, items, once, Controls())) for q in group
        ]
        yield {
            "bench": "machine",
            "model": str(model),
            "device": device_name(once.model.device),
            "threads": torch.get_num_threads(),
            "dtype": once.fingerprint()["dtype"],
            "questions": len(questions),
            "questions_per_image": QUESTIONS_PER_IMAGE,
            "torch": torch.__version__,
        }
        settings = [(answerer, size) for answerer in (anew, once) for size in batch_sizes]
        rates: list[list[float]] = [[] for _ in settings]
        texts = []
        for again in tqdm(range(1 + ROUNDS), desc="rounds", leave=False):
            for number, (answerer, size) in enumerate(settings):
                predictions = Predictions(folder / f"{again} {number}", {})
                asking = Asking(answerer, predictions, size, benchmark.max_new_tokens)
                began = time.perf_counter()
                asking.ask(None, questions, len(questions))
                rates[number].append(len(questions) / (time.perf_counter() - began))
                texts.append({id: row["text"] for id, row in predictions.done.items()})
    measured = [median(rate[1:]) for rate in rates]
    for (answerer, size), rate in zip(settings, measured, strict=True):
        yield _line(answerer is once, size, rate)
    best = max(range(len(settings)), key=lambda number: measured[number])
    yield _line(settings[best][0] is once, settings[best][1], measured[best]) | {
        "setting": "best / batch 1, image per question",
        "speedup": round(measured[best] / measured[0], 2),
        "same_answers": all(found == texts[0] for found in texts),
    }


def _line(image_once: bool, batch_size: int, rate: float) -> dict:
    return {
        "bench": "eval",
        "image_once": image_once,
        "batch_size": batch_size,
        "questions_per_second": round(rate, 2),
    }
