"""Judges of free answers: any OpenAI-compatible endpoint, or a file of reviews that exist already."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from emma.errors import EmmaError
from emma.eval.settings import Setting
from emma.eval.tables import read_rows

JUDGE = Setting(
    "judge",
    "none",
    None,
    ("score",),
    "FILE.jsonl of reviews with id and text (or content), or the URL of an OpenAI-compatible API; its key is "
    "taken from OPENAI_API_KEY",
)
JUDGE_MODEL = Setting("judge_model", "gpt-4-0314", None, ("score",), "model name for the API")
Review = Callable[[str, str, str], str | None]
"""(question's id, system prompt, what is to be judged) -> review, None: there is none."""


def reviewer(judge: str, model: str, what: str) -> Review:
    """How reviews come about.

    Raises:
        EmmaError: none was named, or its file cannot be read.
    """
    if judge == "none":
        raise EmmaError(
            f"{what} is graded by GPT-4: give judge=FILE.jsonl with its reviews, or judge=URL of an "
            "OpenAI-compatible API"
        )
    if judge.startswith(("http://", "https://")):
        return lambda id, system, content: ask(judge, model, system, content)
    rows = read_rows(Path(judge).expanduser(), what)
    reviews = {str(row.get("id", row.get("question_id"))): str(row.get("text", row.get("content", ""))) for row in rows}
    return lambda id, system, content: reviews.get(id)


def ask(url: str, model: str, system: str, content: str, timeout: float = 120) -> str:
    """One chat completion at temperature 0.2 and at most 1024 tokens, as LLaVA's script asks.

    Raises:
        EmmaError: the endpoint cannot be reached or answers with an error.
    """
    messages = [{"role": "system", "content": system}, {"role": "user", "content": content}]
    body = {"model": model, "messages": messages, "temperature": 0.2, "max_tokens": 1024}
    request = urllib.request.Request(
        f"{url.rstrip('/')}/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            return json.load(reply)["choices"][0]["message"]["content"]
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise EmmaError(f"judge {url}: {error}") from error
