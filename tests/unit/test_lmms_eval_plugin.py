"""The lmms-eval plug-in, on a stand-in for the base class of lmms-eval 0.7.3, which is too heavy to install here."""

import abc
import importlib
import sys
import types
from dataclasses import dataclass

import pytest
from PIL import Image

from emma.errors import EmmaError


class Base(abc.ABC):
    """`lmms_eval.api.model.lmms` as far as a model meets it."""

    is_simple = True

    def __init__(self):
        self._rank, self._world_size = 0, 1
        self.cache_hook = types.SimpleNamespace(add_partial=lambda *args: None)
        self.task_dict = {}

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...


@dataclass
class Manifest:
    model_id: str
    simple_class_path: str | None = None


@pytest.fixture
def plugin(monkeypatch):
    modules = {
        "lmms_eval": types.ModuleType("lmms_eval"),
        "lmms_eval.api": types.ModuleType("lmms_eval.api"),
        "lmms_eval.api.model": types.SimpleNamespace(lmms=Base),
        "lmms_eval.models": types.ModuleType("lmms_eval.models"),
        "lmms_eval.models.registry_v2": types.SimpleNamespace(ModelManifest=Manifest),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "emma.eval.lmms_eval_plugin", raising=False)
    yield importlib.import_module("emma.eval.lmms_eval_plugin")
    sys.modules.pop("emma.eval.lmms_eval_plugin", None)


def request(text, document, settings):
    return types.SimpleNamespace(args=(text, settings, lambda doc: doc["images"], document, "task", "test"))


@pytest.fixture
def documents():
    red, blue = (Image.new("RGB", (20, 16), colour) for colour in ("red", "blue"))
    return [{"images": [red]}, {"images": [blue]}, {"images": []}, {"images": [red, blue]}]


def test_answers_are_those_of_the_runner_in_the_order_of_the_requests(plugin, finished, documents):
    from emma.eval.answerers.emma import EmmaAnswerer
    from emma.eval.answering import Question

    _, _, tuned = finished
    model = plugin.Emma(str(tuned / "model"), batch_size=3, device="cpu")
    model.task_dict = {"task": {"test": documents}}
    short, long = {"max_new_tokens": 3, "until": ["\n\n"]}, {"max_new_tokens": 6}
    texts = ("What colour?\nAnswer briefly.", "How wide?", "Say 1.", "Which is wider?")
    requests = [request(text, i, (short, long)[i % 2]) for i, text in enumerate(texts)]
    answers = model.generate_until(requests)
    alone = EmmaAnswerer(tuned / "model", device="cpu")
    for i, text in enumerate(texts):
        pictures = tuple(plugin._embedded(picture) for picture in documents[i]["images"])
        instruction = alone.instruction(text) if pictures else None
        (expected,) = alone.answer([Question(str(i), text, pictures, instruction)], (3, 6)[i % 2], ("\n\n",))
        assert answers[i] == expected.text


def test_the_instruction_is_the_rule_s_on_the_whole_text(plugin, finished, documents):
    _, _, tuned = finished
    model = plugin.Emma(str(tuned / "model"), device="cpu")
    model.task_dict = {"task": {"test": documents}}
    text = "What colour?\nAnswer the question using a single word or phrase."
    assert model._question(0, request(text, 0, {})).instruction == "What colour?"
    assert model._question(0, request(text, 2, {})).instruction is None


def test_what_it_does_not_do(plugin, finished):
    _, _, tuned = finished
    model = plugin.Emma(str(tuned / "model"), device="cpu")
    for call in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(EmmaError, match="emma answers"):
            call([])
    with pytest.raises(EmmaError, match="does not know batch"):
        plugin.Emma(str(tuned / "model"), batch=3)
    with pytest.raises(EmmaError, match="gave str"):
        plugin._embedded("video.mp4")


def test_entry_point(plugin):
    from pathlib import Path

    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["lmms_eval.models"] == {"emma": "emma.eval.lmms_eval_plugin:manifest"}
    made = plugin.manifest()
    module, name = made.simple_class_path.rsplit(".", 1)
    assert (made.model_id, getattr(importlib.import_module(module), name)) == ("emma", plugin.Emma)
