"""The loop of a run: batches through the model, answers to disk, smaller batches where memory runs out."""

import gc
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from emma.eval.answering import Answered, Answerer, Question, Unanswerable
from emma.eval.predictions import Predictions

log = logging.getLogger(__name__)


@dataclass
class Asking:
    """Asks questions in their order. `failed` collects the reasons of those that could not be asked.

    `extra` has, by question id, what else stands in an answer's row. `batch_size` is halved whenever memory runs out,
    and stays so: what could not be held once would fail again.
    """

    answerer: Answerer
    predictions: Predictions
    batch_size: int
    max_new_tokens: int
    stop: Sequence[str] = ()
    extra: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def ask(self, name: str | None, questions: Sequence[Question], total: int) -> None:
        """All `questions`. A bar called `name` counts up to `total`, among them those answered before; None: no bar."""
        bar = tqdm(
            desc=name,
            total=total,
            initial=total - len(questions),
            unit="question",
            mininterval=0.1 if sys.stderr.isatty() else 10,
            disable=name is None or not questions or int(os.environ.get("RANK", 0)) > 0,
        )
        waiting = deque(questions)
        with bar:
            while waiting:
                batch = [waiting.popleft() for _ in range(min(self.batch_size, len(waiting)))]
                began = time.perf_counter()
                answers, again = self._try(batch)
                if answers:
                    self._keep(batch, answers, time.perf_counter() - began)
                    bar.update(len(answers))
                waiting.extendleft(reversed(again))

    def _try(self, batch: list[Question]) -> tuple[list[Answered], list[Question]]:
        """(answers to the batch, none), or (none, what of the batch is to be asked again)."""
        import torch

        try:
            return self.answerer.answer(batch, self.max_new_tokens, self.stop), []
        except Unanswerable as error:
            self.failed.append(str(error))
            return [], [question for question in batch if question.id != error.id]
        except torch.OutOfMemoryError as error:
            reason = str(error).split(". ")[0]
        # Outside of the handler: the error holds the frames, and these the tensors, of the failed attempt.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(batch) == 1:
            self.failed.append(f"question {batch[0].id}: does not fit into memory even alone ({reason})")
            return [], []
        self.batch_size = len(batch) // 2
        log.warning("out of memory with %d questions at once; going on with %d", len(batch), self.batch_size)
        return [], batch

    def _keep(self, batch: list[Question], answers: list[Answered], seconds: float) -> None:
        rows = [
            {
                "id": question.id,
                "prompt": question.prompt,
                "instruction": question.instruction,
                "instruction_cut": answer.instruction_cut,
                "text": answer.text,
                "finished": answer.finished,
                **self.extra.get(question.id, {}),
            }
            for question, answer in zip(batch, answers, strict=True)
        ]
        timing = {"questions": len(batch), "seconds": round(seconds, 3), "batch_size": self.batch_size}
        self.predictions.append(rows, timing | {"device": self.answerer.device})
