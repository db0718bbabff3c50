"""Any OpenAI-compatible chat endpoint: pictures as data URIs, temperature 0, a bounded number of retries."""

import base64
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from emma.errors import EmmaError
from emma.eval.answering import Answered, Question, cut_at

ATTEMPTS = 5
AT_ONCE = 8
TIMEOUT = 120  # seconds a request


class OpenAIAnswerer:
    """`URL#MODEL`, such as `http://localhost:8000/v1#llava`. The key is read from OPENAI_API_KEY and kept nowhere.

    Raises:
        EmmaError: no URL, or no model.
    """

    device = "remote"

    def __init__(self, spec: str, wait: float = 1.0):
        self.url, _, self.model = spec.partition("#")
        if not self.url.startswith(("http://", "https://")) or not self.model:
            raise EmmaError(
                f"--model openai:{spec}: expected openai:URL#MODEL, such as openai:http://host:8000/v1#llava"
            )
        self.url = self.url.rstrip("/")
        self.name, self.wait = f"openai:{self.url}#{self.model}", wait

    def fingerprint(self) -> dict[str, Any]:
        """The endpoint and the model's name: what answers behind them is its owner's."""
        plain = {"dtype": None, "template": None, "instruction": None, "image_mode": None}
        return {"weights": self.name, **plain, "temperature": 0}

    def instruction(self, question: str) -> str | None:
        return None

    def answer(self, questions: Sequence[Question], max_new_tokens: int, stop: Sequence[str] = ()) -> list[Answered]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda question: self._one(question, max_new_tokens, stop), questions))

    def _one(self, question: Question, max_new_tokens: int, stop: Sequence[str]) -> Answered:
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": data_uri(picture)}} for picture in question.open()
        ]
        content.append({"type": "text", "text": question.prompt})
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": max_new_tokens,
        }
        try:
            choice = self._post(body)["choices"][0]
            text, stopped = cut_at(choice["message"]["content"] or "", stop)
        except (KeyError, IndexError, TypeError) as error:
            raise EmmaError(f"{self.name} answered question {question.id} with no message ({error!r})") from error
        return Answered(text, stopped or choice.get("finish_reason") != "length")

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        """The reply; busy (429) and failing (5xx) endpoints are asked again, each time after twice the wait."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self.wait * 2 ** (attempt - 1))
            request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
                    return json.load(reply)
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code} {error.reason}"
                if error.code != 429 and error.code < 500:
                    break
            except (OSError, ValueError) as error:
                reason = str(error)
        raise EmmaError(f"{self.name} cannot be asked: {reason}")


def data_uri(picture: Any) -> str:
    """A PNG as a data URI."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
