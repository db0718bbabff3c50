"""The logic of a chat, without terminal and without model: turns, image, system text and slash commands."""

import difflib
import json
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from emma.errors import EmmaError

if TYPE_CHECKING:
    from PIL.Image import Image

COMMANDS = {
    "/image": "/image FILE    talk about another image (forgets what was said)",
    "/reset": "/reset         forget what was said; image and system text stay",
    "/system": "/system TEXT   set the system text (none: the template's own); forgets what was said",
    "/save": "/save FILE     write the conversation as JSON",
    "/help": "/help          this list",
    "/quit": "/quit          leave (also Ctrl-D)",
}


@dataclass(frozen=True)
class Request:
    """What a model has to answer: the last of `messages` ({"role", "content"}), about `images` (none or one)."""

    messages: list[dict[str, str]]
    images: list["Image"]
    system: str | None


@dataclass
class Chat:
    """One conversation.

    `answer(request)` yields the pieces of an answer; `open_image(path)` gives a picture or raises `EmmaError`. The
    image comes before all turns, so another image (or system text) begins a new conversation.
    """

    answer: Callable[[Request], Iterator[str]]
    open_image: Callable[[Path], "Image"]
    messages: list[dict[str, str]] = field(default_factory=list)
    image: "Image | None" = None
    image_path: Path | None = None
    system: str | None = None
    closed: bool = False

    def ask(self, question: str) -> Generator[str, None, None]:
        """Yield the pieces of the answer. The turn counts once the answer has begun; stopping early (closing the
        iterator, Ctrl-C) keeps what was said so far. Raises `EmmaError` when there is nothing to answer."""
        if not question.strip():
            raise EmmaError("the question is empty; type one, or /help")
        if any("\ud800" <= letter <= "\udfff" for letter in question):  # how Python passes on undecodable bytes
            raise EmmaError(f"the question is not UTF-8 text: {question[:40]!a}; convert it, for example with iconv")
        turn = {"role": "user", "content": question.strip()}
        request = Request([*self.messages, turn], [self.image] if self.image else [], self.system)
        said: list[str] = []
        try:
            for piece in self.answer(request):
                said.append(piece)
                yield piece
        finally:
            if "".join(said).strip():
                self.messages += [turn, {"role": "assistant", "content": "".join(said).strip()}]

    def command(self, line: str) -> str:
        """Carry out a slash command; returns the line to show. Raises `EmmaError` for what a user can mend, and then
        changes nothing."""
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        if name == "/image":
            return self.show_image(argument)
        if name == "/reset":
            self.messages.clear()
            return "the conversation is forgotten"
        if name == "/system":
            self.messages.clear()
            self.system = argument or None
            return "system text set" if argument else "system text: the template's own"
        if name == "/save":
            return self.save(argument)
        if name == "/help":
            return "\n".join(COMMANDS.values())
        if name in ("/quit", "/exit"):
            self.closed = True
            return "bye"
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise EmmaError(f"unknown command {name}; {f'did you mean {near[0]}?' if near else 'type /help for the list'}")

    def show_image(self, file: str) -> str:
        """Take the image `file` (quotes around the name are dropped) and begin a new conversation about it."""
        if not file:
            raise EmmaError(f"/image needs a file; the image now is {self.image_path or 'none'}")
        path = Path(_unquoted(file)).expanduser()
        self.image, self.image_path = self.open_image(path), path
        self.messages.clear()
        return f"image: {path} ({self.image.width} x {self.image.height})"

    def save(self, file: str) -> str:
        """Write image path, system text and messages to the new file `file`."""
        if not file:
            raise EmmaError("/save needs a file name")
        path = Path(_unquoted(file)).expanduser()
        content = {"image": str(self.image_path) if self.image_path else None, "system": self.system}
        try:
            with path.open("x", encoding="utf-8") as output:
                json.dump(content | {"messages": self.messages}, output, indent=2, ensure_ascii=False)
                output.write("\n")
        except FileExistsError as error:
            raise EmmaError(f"{path} exists already; give another name") from error
        except OSError as error:
            raise EmmaError(f"cannot write {path}: {error.strerror}") from error
        return f"saved {len(self.messages) // 2} turns to {path}"


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
