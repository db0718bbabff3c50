"""The chat's turns and commands, and the command line around them, without a model."""

import io
import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from emma.checkpoints.seal import seal
from emma.errors import EmmaError
from emma.processing.images import open_image
from emma.serve import cli, find_model
from emma.serve.chat import Chat
from emma.serve.cli import Console, converse, parser


@pytest.fixture
def asked():
    return []


@pytest.fixture
def chat(asked):
    def answer(request):
        asked.append(request)
        yield from ("It ", "is ", f"answer {len(asked)}. ")

    return Chat(answer, open_image)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "my picture.png"
    Image.new("RGB", (8, 6), "red").save(path)
    return path


def test_turns_are_remembered(chat, asked, picture):
    assert "8 x 6" in chat.command(f"/image {picture}")
    assert "".join(chat.ask("  What is it? ")) == "It is answer 1. "
    list(chat.ask("And now?"))
    assert [message["content"] for message in asked[1].messages] == ["What is it?", "It is answer 1.", "And now?"]
    assert [message["role"] for message in asked[1].messages] == ["user", "assistant", "user"]
    assert asked[1].images[0].size == (8, 6)


def test_without_image(chat, asked):
    list(chat.ask("Hello?"))
    assert asked[0].images == []


def test_reset_and_system(chat, asked, picture):
    chat.command(f'/image "{picture}"')
    list(chat.ask("One?"))
    chat.command("/system Be short.")
    list(chat.ask("Two?"))
    assert len(asked[1].messages) == 1
    assert asked[1].system == "Be short."
    chat.command("/reset")
    list(chat.ask("Three?"))
    assert len(asked[2].messages) == 1
    assert asked[2].images
    assert asked[2].system == "Be short."
    chat.command("/system")
    assert chat.system is None


def test_another_image_begins_anew(chat, asked, picture):
    list(chat.ask("One?"))
    chat.command(f"/image {picture}")
    list(chat.ask("Two?"))
    assert len(asked[1].messages) == 1


def test_stopped_answer_is_kept(chat):
    pieces = chat.ask("One?")
    assert next(pieces) == "It "
    pieces.close()
    assert chat.messages[-1] == {"role": "assistant", "content": "It"}


def test_failed_answer_is_no_turn(picture):
    def answer(request):
        raise EmmaError("too long")
        yield ""

    chat = Chat(answer, open_image)
    with pytest.raises(EmmaError, match="too long"):
        list(chat.ask("One?"))
    assert chat.messages == []


def test_user_errors_leave_the_chat_as_it_was(chat, picture, tmp_path):
    chat.command(f"/image {picture}")
    list(chat.ask("One?"))
    (tmp_path / "broken.png").write_bytes(picture.read_bytes()[:40])
    (tmp_path / "text.png").write_text("no picture")
    messages = list(chat.messages)
    for line, message in {
        f"/image {tmp_path}/none.png": "does not exist",
        f"/image {tmp_path}": "directory",
        f"/image {tmp_path}/broken.png": "broken.png",
        f"/image {tmp_path}/text.png": "not an image",
        "/image": "needs a file",
        "/save": "needs a file",
        f"/save {picture}": "exists already",
        f"/save {tmp_path}/no/such/folder.json": "cannot write",
        "/rest": "did you mean /reset",
        "/": "type /help",
    }.items():
        with pytest.raises(EmmaError, match=message) as error:
            chat.command(line)
        assert "\n" not in str(error.value)
        assert (chat.messages, chat.image_path) == (messages, picture)
    with pytest.raises(EmmaError, match="empty"):
        list(chat.ask("  "))
    with pytest.raises(EmmaError, match=r"not UTF-8 text: 'caf\\udce9'"):
        list(chat.ask("caf\udce9"))
    assert chat.messages == messages


def test_save(chat, picture, tmp_path):
    chat.command(f"/image {picture}")
    list(chat.ask("Was ist das? 图"))
    assert "1 turns" in chat.command(f"/save {tmp_path}/chat.json")
    saved = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))
    assert saved["image"] == str(picture)
    assert [message["content"] for message in saved["messages"]] == ["Was ist das? 图", "It is answer 1."]


def test_help_names_every_command(chat):
    for command in ("/image", "/reset", "/system", "/save", "/help"):
        assert command in chat.command("/help")
        assert command in parser().format_help()


def test_lines_from_a_pipe(chat, monkeypatch, capsys, tmp_path):
    text = f"What?\n\n/image {tmp_path}/none.png\nAnd now?\n/quit\nNever asked\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    console = Console(interactive=False)
    converse(chat, console)
    out, err = capsys.readouterr()
    assert out == "It is answer 1. \nIt is answer 2. \n"  # answers alone, one line each
    assert "does not exist" in err
    assert "\033" not in err
    assert console.failed


def test_bytes_that_are_no_text_cost_one_question(tmp_path):
    """The whole command, up to the question: the model folder is never reached."""
    code = (
        "import sys, emma; from emma.serve import cli, generation\n"
        "emma.load = lambda *a, **k: (None, None)\n"
        "cli.describe = lambda folder: None\n"
        "generation.stream_answer = lambda model, processor, request, **k: iter(['fine'])\n"
        "cli.main(['--model', '.'])"
    )
    for locale in ("C.UTF-8", "C", "POSIX"):  # Python decodes standard input strictly in some, not in others
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=b"caf\xe9?\nIs it red?\n",
            env={**os.environ, "LC_ALL": locale},
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, b"fine\n"), done.stderr.decode()
        assert done.stderr.decode().strip().startswith("error: the question is not UTF-8 text")
        assert done.stderr.count(b"\n") == 1


def test_no_standard_input_is_said():
    done = subprocess.run(
        ["sh", "-c", '"$1" -c "$2" <&-', "sh", sys.executable, READER], capture_output=True, text=True, check=False
    )
    assert "standard input is closed" in done.stderr


READER = "from emma.serve.cli import Console; Console(interactive=False).reader()"


def test_interactive_chat_goes_on_after_an_empty_line(chat, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\nWhat?\n"))
    converse(chat, Console(interactive=True))
    out, err = capsys.readouterr()
    assert "the question is empty" in err
    assert "It is answer 1." in out


def test_ctrl_c_stops_the_answer_only(capsys):
    def answer(request):
        yield "It "
        raise KeyboardInterrupt

    chat = Chat(answer, open_image)
    cli.say(chat, "What?", Console(interactive=True))
    assert "stopped" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        cli.say(chat, "What?", Console(interactive=False))


def test_find_model_takes_the_newest_complete_one(tmp_path):
    with pytest.raises(EmmaError, match="quickstart"):
        find_model(tmp_path)
    for age, name in enumerate(("tiny-b", "tiny", "other", "tiny-unfinished")):
        folder = tmp_path / "runs" / name / "finetune" / "model"
        folder.mkdir(parents=True)
        if name != "tiny-unfinished":
            (folder / "config.json").write_text("{}")
            seal(folder)
            os.utime(folder / "complete.json", (1000 - age, 1000 - age))
    assert find_model(tmp_path) == tmp_path / "runs" / "tiny-b" / "finetune" / "model"
    (tmp_path / "runs" / "tiny-b" / "finetune" / "model" / "config.json").unlink()
    assert find_model(tmp_path) == tmp_path / "runs" / "tiny" / "finetune" / "model"


@pytest.mark.parametrize("arguments", [["--temperature", "-1"], ["--max-new-tokens", "0"], ["--temperature", "hot"]])
def test_bad_options(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        parser().parse_args(arguments)
    assert exit.value.code == 2


def test_errors_before_a_model_is_loaded(capsys, tmp_path):
    for arguments, message in {
        ("--model", str(tmp_path), "--question", " "): "--question is empty",
        ("--model", str(tmp_path / "none"), "--question", "What?"): "none",
        ("--model", str(tmp_path), "--question", "What?", "--image", ""): "--image is empty",
        ("--model", str(tmp_path), "--question", "What?", "--image", str(tmp_path)): "is a directory",
    }.items():
        with pytest.raises(SystemExit) as exit:
            cli.main(list(arguments))
        assert exit.value.code == 1
        error = capsys.readouterr().err.strip()
        assert message in error
        assert error.startswith("error: ")
        assert error.count("\n") == 0
