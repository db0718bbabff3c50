"""Chat with a model in the terminal: `python -m emma.serve.cli [--model FOLDER] [--image FILE]`."""

import argparse
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

from emma.errors import EmmaError, cli
from emma.serve.chat import COMMANDS, Chat


def parser() -> argparse.ArgumentParser:
    """The command line; nothing heavy is imported here."""
    result = argparse.ArgumentParser(
        prog="python -m emma.serve.cli",
        description="Chat about an image. With standard input that is no terminal, every line of it is a question or a "
        "command.",
        epilog="commands in the chat:\n  " + "\n  ".join(COMMANDS.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--model", metavar="FOLDER", help="checkpoint folder (default: the last quickstart model)")
    result.add_argument("--image", metavar="FILE", help="picture to talk about (default: none, text only)")
    result.add_argument("--question", metavar="TEXT", help="ask this, print the answer and leave")
    result.add_argument("--system", metavar="TEXT", help="system text (default: the template's own)")
    result.add_argument("--temperature", type=_temperature, default=0.0, help="0 (default) is greedy, more is livelier")
    result.add_argument("--max-new-tokens", type=_positive, default=512, help="longest answer (default 512)")
    result.add_argument("--device", help="cpu, cuda ... (default: cuda where present)")
    result.add_argument("--dtype", help="float32, bfloat16 (default: float32 on a CPU, bfloat16 on CUDA)")
    return result


def _temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return value


class Console:
    """Where text goes: answers to standard output; notices to standard error; colours on a terminal only."""

    def __init__(self, interactive: bool):
        self.interactive = interactive
        self.failed = False

    def notice(self, text: str, colour: str = "2") -> None:
        """A line about the chat, not of it."""
        coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        print(f"\033[{colour}m{text}\033[0m" if coloured else text, file=sys.stderr, flush=True)

    def error(self, error: EmmaError) -> None:
        """One line; the chat goes on, and a run without a person at it ends with exit code 1."""
        self.failed = True
        self.notice(f"error: {error}", "31")

    def reader(self) -> Callable[[], str]:
        """A function that reads the next line and raises `EOFError` after the last one."""
        if self.interactive and sys.stdout.isatty():
            from prompt_toolkit import PromptSession

            session = PromptSession(reserve_space_for_menu=0)  # there is nothing to complete
            return lambda: session.prompt("you: ")
        if sys.stdin is None:
            raise EmmaError("standard input is closed; ask with --question TEXT, or give input, even if /dev/null")
        return input


def converse(chat: Chat, console: Console) -> None:
    """Read lines until the end or /quit, and carry each out."""
    read = console.reader()
    while not chat.closed:
        try:
            line = read().strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            if not console.interactive:
                raise
            console.notice("(to leave: /quit or Ctrl-D)")
            continue
        try:
            if line.startswith("/"):
                console.notice(chat.command(line))
            elif line or console.interactive:
                say(chat, line, console)
        except EmmaError as error:
            console.error(error)


def say(chat: Chat, question: str, console: Console) -> None:
    """Print the answer to `question` as it comes. Ctrl-C in an interactive chat stops the answer, not the chat."""
    pieces = chat.ask(question)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
        print(flush=True)
    except KeyboardInterrupt:
        pieces.close()
        if not console.interactive:
            raise
        console.notice(" (stopped)")


def describe(folder: Path) -> str | None:
    """A line about a checkpoint that was not trained to answer questions."""
    from emma.checkpoints import provenance

    if provenance.read(folder).get("stage") == "pretrain":
        return f"{folder} has only been pretrained (stage 1): it can caption, it has not learned to answer questions"
    return None


@cli
def main(arguments: list[str] | None = None) -> int:
    """Entry point; exit code 1 when a question that came without a terminal could not be answered."""
    options = parser().parse_args(arguments)
    interactive = options.question is None and sys.stdin is not None and sys.stdin.isatty()
    console = Console(interactive)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a bad byte is one bad question, not the end
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer may hold what the terminal's encoding does not
    if options.model:
        folder = Path(options.model).expanduser()
    else:
        from emma.serve import find_model

        folder = find_model()
        console.notice(f"model: {folder} (the last quickstart model)")
    if options.question is not None and not options.question.strip():
        raise EmmaError("--question is empty")
    if options.image is not None and not options.image.strip():
        raise EmmaError("--image is empty; give a file, or leave it out for a chat without a picture")

    from transformers.utils import logging as transformers_logging

    import emma
    from emma.processing.images import open_image
    from emma.serve.generation import stream_answer

    transformers_logging.disable_progress_bar()

    def answer(request):
        settings = {"temperature": options.temperature, "max_new_tokens": options.max_new_tokens}
        return stream_answer(model, processor, request, **settings)

    chat = Chat(answer, open_image, system=options.system)
    if options.image is not None:
        try:
            console.notice(chat.show_image(options.image))
        except EmmaError as error:
            if not interactive:
                raise
            console.error(error)
    model, processor = emma.load(folder, dtype=options.dtype, device=options.device)
    if line := describe(folder):
        console.notice(line)
    if options.question is not None:
        say(chat, options.question, console)
    else:
        if interactive:
            console.notice("ask about the image, or /help" if chat.image else "no image yet: /image FILE, or /help")
        converse(chat, console)
    return int(console.failed and not interactive)


if __name__ == "__main__":
    main()
