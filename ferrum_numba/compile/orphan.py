"""A process that builds or measures does not outlive the one that started it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """End this process at once when its parent is gone, even killed; does nothing without one.

    A compiler that takes long keeps the processor; a kernel that hangs keeps the process from
    reading its pipe, and the GPU from everybody else.
    Linux could send a signal by itself, but it does when the thread that started the process ends.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent.sentinel,), daemon=True).start()


def _watch(sentinel: int) -> None:
    wait([sentinel])
    # no cleaning up: it would wait for the GPU
    os.kill(os.getpid(), signal.SIGKILL)
