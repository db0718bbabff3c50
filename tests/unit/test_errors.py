"""What a command line makes of errors: one line and an exit code, never a traceback."""

import errno
import os
import subprocess
import sys

import pytest

from emma.errors import EmmaError, cli, describe_os_error


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
