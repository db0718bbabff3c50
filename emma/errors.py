"""Errors that a user can cause and mend: one sentence, no traceback."""

import functools
import os
import sys
from collections.abc import Callable


class EmmaError(ValueError):
    """Bad input. The message names the sample or key, the values and the remedy."""


def cli(main: Callable[..., int | None]) -> Callable[..., None]:
    """Wrap a command's `main`: an `EmmaError` becomes one line on stderr and exit code 1, Ctrl-C exit code 130.

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
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return wrapped
