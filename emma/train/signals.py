"""SIGTERM, SIGUSR1 and Ctrl-C during training: noted by a handler, acted on after the running optimizer step."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # USR1: what Slurm sends ahead of the end of a job


class StopRequest:
    """Context in which the first SIGTERM, SIGINT or SIGUSR1 sets `received`; a second SIGINT interrupts at once.

    Handlers can be set in the main thread only; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        logger.info("%s: saving after this step, then stopping", signal.Signals(number).name)


def ignore_in_worker(worker: int) -> None:
    """Data workers leave signals to the main process, which a scheduler or terminal signals too."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
