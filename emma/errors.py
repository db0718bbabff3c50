"""Errors that a user can cause and mend: one sentence, no traceback."""

import errno
import functools
import os
import signal
import sys
from collections.abc import Callable


class EmmaError(ValueError):
    """Bad input. The message names the sample or key, the values and the remedy."""


REMEDIES = {
    errno.ENOSPC: "free some space and start again",
    errno.EDQUOT: "free some space and start again",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "check its permissions, or choose another place",
    errno.EPERM: "check its permissions, or choose another place",
    errno.ENOTDIR: "a part of this path is a file; choose another place",
    errno.EEXIST: "something of this name is in the way; move it or choose another place",
}


def describe_os_error(error: OSError) -> str:
    """Path, the system's reason, and what to do about it where that is known, in one line."""
    if error.errno is None:  # raised by a library with a message of its own
        return " ".join(str(error).split())
    reason = os.strerror(error.errno)
    path = f"{error.filename}: " if error.filename is not None else ""
    remedy = f"; {REMEDIES[error.errno]}" if error.errno in REMEDIES else ""
    return f"{path}{reason}{remedy}"


def cli(main: Callable[..., int | None]) -> Callable[..., None]:
    """Wrap a command's `main`: an `EmmaError` becomes one line on stderr and exit code 1, Ctrl-C exit code 130.

    So does an `OSError` that nothing on the way had more to say about: a full disk, a folder that is not ours to write;
    and a dependency that is not installed.
    When the reader of the output has gone (`| head`), the command ends as other programs do, silently.

    `EMMA_DEBUG=1` in the environment shows the traceback instead.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> None:
        try:
            sys.exit(main(*args, **kwargs) or 0)
        except EmmaError as error:
            if os.environ.get("EMMA_DEBUG") == "1":
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except ModuleNotFoundError as error:
            if os.environ.get("EMMA_DEBUG") == "1" or str(error.name).split(".")[0] == "emma":
                raise
            print(
                f"error: {error} in the Python of {sys.prefix}; activate the environment that has EMMA (the scripts "
                "make .venv: source .venv/bin/activate), or install it here: pip install -e .",
                file=sys.stderr,
            )
            sys.exit(1)
        except BrokenPipeError:
            # Python would flush standard output at exit and complain once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)
        except OSError as error:
            if os.environ.get("EMMA_DEBUG") == "1":
                raise
            print(f"error: {describe_os_error(error)}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return wrapped
