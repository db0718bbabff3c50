"""EMMA as a model of lmms-eval: `lmms_eval --model emma --model_args pretrained=FOLDER --tasks mme`.

lmms-eval finds it through the entry point group `lmms_eval.models`, and only lmms-eval imports this file. It hands over
one text a request, in which question and format suffix are joined: the checkpoint's own evaluation rule takes the
instruction from that text (`first_line` and `question` leave the suffix out). Written against lmms-eval 0.7.3.
"""

import io
from collections import defaultdict
from typing import Any

from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from emma.errors import EmmaError
from emma.eval.answerers.emma import EmmaAnswerer
from emma.eval.answering import Question
from emma.eval.pictures import Embedded

MAX_NEW_TOKENS = 128  # where a task does not say


def manifest() -> Any:
    """What the entry point gives to lmms-eval."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("emma", simple_class_path="emma.eval.lmms_eval_plugin.Emma")


class Emma(lmms):
    """A model folder behind lmms-eval's interface; decoding is greedy, as in this project's own runner.

    Args:
        pretrained: the folder.
        batch_size: requests at once.
        dtype, device: as for `emma.load`.
    """

    def __init__(
        self, pretrained: str, batch_size: int = 1, dtype: str | None = None, device: str | None = None, **further: Any
    ):
        super().__init__()
        if further:
            raise EmmaError(
                f"--model_args: emma does not know {', '.join(further)}; it takes pretrained, dtype, device"
            )
        self.answerer = EmmaAnswerer(pretrained, dtype, device)
        self.batch_size = int(batch_size)

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return self._world_size

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Answers in the order of the requests, whose `args` are text, generation settings, a function from a document
        to its pictures, and the document's id, task and split. Requests with the same settings go in batches."""
        alike: dict[tuple[int, tuple[str, ...]], list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            settings = request.args[1]
            until = settings.get("until") or ()
            stop = (until,) if isinstance(until, str) else tuple(until)
            alike[int(settings.get("max_new_tokens") or MAX_NEW_TOKENS), stop].append(place)
        texts: dict[int, str] = {}
        with tqdm(total=len(requests), desc="emma", disable=self.rank != 0) as bar:
            for (tokens, stop), places in alike.items():
                for start in range(0, len(places), self.batch_size):
                    batch = places[start : start + self.batch_size]
                    questions = [self._question(place, requests[place]) for place in batch]
                    for place, answered in zip(batch, self.answerer.answer(questions, tokens, stop), strict=True):
                        texts[place] = answered.text
                        self.cache_hook.add_partial("generate_until", requests[place].args[:2], answered.text)
                    bar.update(len(batch))
        return [texts[place] for place in range(len(requests))]

    def _question(self, place: int, request: Any) -> Question:
        text, _, to_pictures, document, task, split = request.args
        pictures = tuple(_embedded(picture) for picture in to_pictures(self.task_dict[task][split][document]) or ())
        instruction = self.answerer.instruction(text) if pictures else None
        return Question(f"{task}/{document}/{place}", text, pictures, instruction)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise EmmaError("emma answers generation tasks of lmms-eval only, none that compare log-likelihoods")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise EmmaError("emma answers single-round tasks of lmms-eval only")


def _embedded(picture: Any) -> Embedded:
    """lmms-eval's PIL image, kept as lossless bytes.

    Raises:
        EmmaError: a video or a sound.
    """
    if not isinstance(picture, Image.Image):
        raise EmmaError(f"emma sees images, but a task of lmms-eval gave {type(picture).__name__}")
    content = io.BytesIO()
    picture.convert("RGB").save(content, "PNG")
    return Embedded.of_struct({"bytes": content.getvalue()}, "lmms-eval")
