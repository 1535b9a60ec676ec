r"""Signals that ask a training to stop: it finishes the step, saves, and says so by its exit status.

SIGTERM is what schedulers send before they end a job, SIGUSR1 what they can be asked to send earlier, SIGINT the
keyboard. A program that was asked to stop by one of the first two exits with a status that means "run me again",
:data:`REQUEUE` by default.
"""

from __future__ import annotations

__all__ = ["REQUEUE", "StopSignals"]

import contextlib
import signal
from types import FrameType, TracebackType
from typing import Any

import torch

from .ranks import size, total

# EX_TEMPFAIL of sysexits.h, "the user is invited to retry": the status for schedulers that run a job again.
REQUEUE = 75

_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if "SIGUSR1" in signal.Signals.__members__ else []))


class StopSignals:
    """Within it, SIGINT, SIGTERM and SIGUSR1 are remembered, and do not end the program.

    A second SIGINT raises KeyboardInterrupt at once. Outside of the main thread, which alone has signals, nothing
    changes.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        with contextlib.suppress(ValueError):  # not the main thread
            for each in _SIGNALS:
                self._before[each] = signal.signal(each, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def received(self) -> signal.Signals | None:
        """The signal that this rank or another one has received, the last in the order of the list; a call of all
        ranks."""
        number = 0 if self._received is None else 1 + _SIGNALS.index(self._received)
        if size() > 1:
            flags = torch.zeros(len(_SIGNALS) + 1, device="cpu")
            flags[number] = 1.0
            number = int(total(flags).nonzero().max())
        return None if number == 0 else _SIGNALS[number - 1]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = signal.Signals(number)
