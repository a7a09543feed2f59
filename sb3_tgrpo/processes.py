"""Processes that end with the one that started them. Standard library only: every room may import this."""

import os
import threading
import time


def end_with_parent(parent: int) -> None:
    """
    End this process when the one that started it is gone, whatever this one is doing.

    A parent that is killed can't end its children, and a child that compiles or builds a scene does not read its pipe.

    :param parent: Process id of the parent, as the parent knows it: it may have ended before this call.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
