"""Commands clean up however they are stopped."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def as_interrupt() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C; left alone where somebody handles it already."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stop(number: int, frame: Any) -> None:
    # a second one must not stop the cleaning up
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
