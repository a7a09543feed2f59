"""Ctrl-C of commands that go on where they were interrupted."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside the block a line answers Ctrl-C at once: ending simulators takes seconds. A second Ctrl-C ends without them."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return

    def interrupt(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        print("\nInterrupted: simulators are ended. The same command goes on from here.", file=sys.stderr, flush=True)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
