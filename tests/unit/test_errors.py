"""What a command line makes of errors: one line and an exit code, never a traceback."""

import errno
import os
import subprocess
import sys

import pytest

from emma.errors import EmmaError, cli, describe_os_error
from emma.paths import project_root

COMMANDS = [
    "emma.train",
    "emma.data",
    "emma.data show",
    "emma.data world",
    "emma.eval",
    "emma.eval run",
    "emma.eval score",
    "emma.eval report",
    "emma.serve.cli",
    "emma.world",
    "emma.world foundation",
    "emma.world.quickstart",
    "emma.checkpoints",
    "emma.bench",
    "emma.bench train",
    "emma.bench data",
]


def ended(main, capsys):
    """(exit code, standard error) of a wrapped main."""
    with pytest.raises(SystemExit) as exit:
        cli(main)()
    return exit.value.code, capsys.readouterr().err


def raising(error):
    def main():
        raise error

    return main


def test_errors_that_a_user_can_mend_are_one_line(capsys, monkeypatch):
    assert ended(raising(EmmaError("no such thing")), capsys) == (1, "error: no such thing\n")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/runs/x")
    message = "error: /runs/x: No space left on device; free some space and start again\n"
    assert ended(raising(full), capsys) == (1, message)
    assert ended(raising(KeyboardInterrupt()), capsys) == (130, "interrupted\n")
    assert ended(lambda: None, capsys) == (0, "")
    assert ended(lambda: 3, capsys) == (3, "")
    monkeypatch.setenv("EMMA_DEBUG", "1")
    for error in (EmmaError("no such thing"), full):
        with pytest.raises(type(error)):
            cli(raising(error))()


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli(lambda: 1 / 0)()


def test_a_python_without_the_dependencies_is_named(capsys):
    code, said = ended(raising(ModuleNotFoundError("No module named 'torch'", name="torch")), capsys)
    assert code == 1
    assert said.startswith(f"error: No module named 'torch' in the Python of {sys.prefix}; activate")
    assert said.count("\n") == 1
    with pytest.raises(ModuleNotFoundError):
        cli(raising(ModuleNotFoundError("No module named 'emma.x'", name="emma.x")))()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_answers_without_torch(command):
    """Less than 2 seconds on an idle machine: nothing heavy is imported before the arguments are read."""
    module, *words = command.split()
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{module!r}, *{words!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n"
        "    heavy = {'torch', 'transformers', 'datasets', 'omegaconf'} & sys.modules.keys()\n"
        "    sys.exit(end.code or (f'imported {heavy}' if heavy else 0))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=project_root())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


@pytest.mark.parametrize("words", [["emma.train", "x.yaml", "--stage", "pretrain"], ["emma.serve.cli", "--model", "x"]])
def test_a_command_in_an_environment_without_dependencies(words):
    """`-S` leaves out site-packages: the case of a user who forgot to activate the environment."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=project_root(),
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: No module named ")
    assert done.stderr.count("\n") == 1


def test_a_path_through_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory") as raised:
        (tmp_path / "file" / "folder").mkdir()
    assert describe_os_error(raised.value) == (
        f"{tmp_path}/file/folder: Not a directory; a part of this path is a file; choose another place"
    )
    assert describe_os_error(OSError("a library's\n  own words")) == "a library's own words"


def test_a_reader_that_has_gone_ends_the_command_silently():
    code = "from emma.errors import cli\n@cli\ndef main():\n    while True: print('y' * 1000)\nmain()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141
