"""Installs this checkout into the environment of the Python that runs this file, once: a stamp is left there.

Standard library only, since nothing else is there yet. Called by `_env.sh`. The versions are those of constraints.txt,
with one exception: an environment that is not the checkout's own .venv keeps the torch that it has.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
STAMP = "emma-install.stamp"
LOG = "emma-install.log"
EXTRAS = "dev"
# Which build of these fits a machine (CUDA, ROCm, CPU) is for its owner to say.
PLATFORM_BUILDS = ("torch", "torchvision")
SUMMARY = """
import torch, torchvision, transformers, open_clip, emma
build = f"CUDA {torch.version.cuda} build" if torch.version.cuda else "CPU build"
print(f"torch {torch.__version__} ({build}, {torch.cuda.device_count()} GPUs), transformers {transformers.__version__}")
"""


def say(text: str) -> None:
    print(f"[emma] {text}", file=sys.stderr, flush=True)


def fingerprint(checkout: Path) -> str:
    """Hash of all that decides what an installation puts where."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((checkout / name).read_bytes())
    digest.update(f"{checkout} {EXTRAS} {platform.python_version()}".encode())
    return digest.hexdigest()


def constraint_lines(text: str, keep_torch: bool) -> list[str]:
    """The lines of constraints.txt; with `keep_torch`, an installed torch (and torchvision) is held at what it is."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not keep_torch or importlib.util.find_spec("torch") is None:
        return lines
    others = [line for line in lines if line.split("==")[0] not in PLATFORM_BUILDS]
    installed = [name for name in PLATFORM_BUILDS if importlib.util.find_spec(name)]
    return others + [f"{name}=={importlib.metadata.version(name)}" for name in installed]


def activity(line: str) -> str | None:
    """What a line of pip's output says that pip is doing, short enough for one line on a screen."""
    if line.startswith("Installing collected packages:"):
        return f"unpacking {line.count(',') + 1} packages"
    if match := re.match(r"\s*(Collecting|Downloading|Processing|Building \w+ for) (\S+)", line):
        return f"{match.group(1).lower()} {match.group(2).rsplit('/', 1)[-1]}"
    return None


def follow(process: subprocess.Popen, log_path: Path) -> None:
    """Copy the process's output to the log until it ends; say every 20 seconds what it is doing."""
    start, doing = time.monotonic(), "starting pip"

    def copy() -> None:
        nonlocal doing
        with log_path.open("w", encoding="utf-8") as log:
            for line in process.stdout:
                log.write(line)
                doing = activity(line) or doing

    reader = threading.Thread(target=copy)
    reader.start()
    while True:
        try:
            process.wait(timeout=20)
            break
        except subprocess.TimeoutExpired:
            say(f"{time.monotonic() - start:5.0f} s: {doing}")
    reader.join()


def pip_install(log_path: Path, constraints: list[str]) -> None:
    """Run pip on the checkout, editable; exits with the end of pip's output when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        constraints_file = Path(folder) / "constraints.txt"
        constraints_file.write_text("\n".join(constraints) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
        command += ["--progress-bar", "off", "-c", str(constraints_file), "-e", f".[{EXTRAS}]"]
        process = subprocess.Popen(
            command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            follow(process, log_path)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        lines = [line for line in log_path.read_text(encoding="utf-8").splitlines() if not line.startswith("WARNING")]
        print("\n".join(lines[-20:]), file=sys.stderr)
        sys.exit(
            f"error: pip could not install EMMA into {sys.prefix} (its whole output: {log_path}). "
            "Without a network, install by hand and set EMMA_NO_INSTALL=1"
        )


def main() -> None:
    prefix = Path(sys.prefix)
    stamp, wanted = prefix / STAMP, fingerprint(CHECKOUT)
    if stamp.is_file() and stamp.read_text(encoding="utf-8").strip() == wanted:
        return
    if not os.access(prefix, os.W_OK):
        sys.exit(f"error: {prefix} cannot be written to; EMMA_NO_INSTALL=1 takes it as it is, EMMA_VENV names another")
    if importlib.util.find_spec("pip") is None:
        made = subprocess.run([sys.executable, "-m", "ensurepip"], capture_output=True, check=False)
        if made.returncode:
            sys.exit(f"error: {prefix} has no pip and its Python cannot make one; install pip there and start again")
    log_path = prefix / LOG
    say(f"installing EMMA and what it needs into {prefix}: once, some minutes, several GB with a CUDA build of torch")
    start = time.monotonic()
    own = prefix.resolve() == (CHECKOUT / ".venv").resolve()
    pip_install(log_path, constraint_lines((CHECKOUT / "constraints.txt").read_text("utf-8"), keep_torch=not own))
    seconds = time.monotonic() - start
    # A torch and a torchvision that do not fit each other show only on import.
    check = subprocess.run([sys.executable, "-c", SUMMARY], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if check.returncode:
        reason = (check.stderr.strip().splitlines() or [f"exit code {check.returncode}"])[-1]
        sys.exit(
            f"error: the packages in {prefix} do not work together: {reason}. A torch and a torchvision must come from "
            "the same source; mend that and start again, or let EMMA_VENV name an environment that does not exist yet"
        )
    stamp.write_text(wanted + "\n", encoding="utf-8")
    say(f"installed in {seconds:.0f} s: Python {platform.python_version()}, {check.stdout.strip()}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; the next call takes the installation up again")
