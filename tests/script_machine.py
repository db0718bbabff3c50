"""A machine for tests of the shell scripts: a copy of them, and a fake `python` that writes its arguments to a log."""

import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("bash", "sh", "dirname", "sed", "grep", "sort", "wc", "nproc", "getconf", "lscpu", "mkdir", "rm", "cp", "cat")
FAKE_PYTHON = """#!/bin/sh
{ printf '%s' "$0"; printf '<%s>' "$@"; printf '\\n'; } >> "$FAKE_LOG"
case "$1 $2" in
"-m venv")
    for folder; do :; done
    mkdir -p "$folder/bin" && cp "$0" "$folder/bin/python"
    exit "${FAKE_VENV_FAILS:-0}" ;;
"-c "*torch*) echo "${FAKE_GPUS:-0}"; exit 0 ;;
"-m torch.distributed.run") if [ -n "$FAKE_TORCHRUN" ]; then exec "$REAL_PYTHON" "$FAKE_TORCHRUN"; fi ;;
"-m emma.train") if [ -n "$FAKE_TRAINING" ]; then exec "$REAL_PYTHON" "$FAKE_TRAINING"; fi ;;
"-c "*version_info*) exit "${FAKE_TOO_OLD:-0}" ;;
esac
case "$1" in */_install.py) exit "${FAKE_INSTALL_FAILS:-0}" ;; esac
exit 0
"""


def write_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class Machine:
    """A copy of the scripts in a folder with spaces, and a PATH that holds a few tools and fake Pythons only."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "a checkout"
        self.elsewhere = folder / "some where else"
        self.bin = folder / "bin"
        self.log = folder / "calls.log"
        self.variables: dict[str, str] = {}
        self.elsewhere.mkdir()
        shutil.copytree(ROOT / "scripts", self.checkout / "scripts")
        shutil.copytree(ROOT / ".ci", self.checkout / ".ci")
        self.bin.mkdir()
        for tool in TOOLS:
            if path := shutil.which(tool):
                (self.bin / tool).symlink_to(path)

    def add_python(self, name: str) -> Path:
        return write_program(self.bin / name, FAKE_PYTHON)

    def add_environment(self, name: str) -> Path:
        return write_program(self.elsewhere / name / "bin" / "python", FAKE_PYTHON).parents[1]

    def run(self, script: str, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess:
        """Run a script of the copy from another folder, with no standard input."""
        self.log.write_text("")
        done = subprocess.run(
            ["bash", str(self.checkout / script), *arguments],
            cwd=self.elsewhere,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done

    def start(self, script: str, *arguments: str) -> subprocess.Popen:
        """Begin to run a script of the copy, in a process group of its own, to send signals to."""
        return subprocess.Popen(
            ["bash", str(self.checkout / script), *arguments],
            cwd=self.elsewhere,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # A test run in the background ignores Ctrl-C, and a shell cannot trap what was ignored when it began.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    @property
    def environment(self) -> dict[str, str]:
        fixed = {"PATH": str(self.bin), "HOME": str(self.elsewhere), "FAKE_LOG": str(self.log)}
        return fixed | {"REAL_PYTHON": sys.executable} | self.variables

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()

    @property
    def last(self) -> str:
        return self.calls[-1]
