"""
Processes that end with the one that started them, and the processes of a run of ``accelerate launch`` or ``torchrun``.

Every room may import this. PyTorch is imported on use only, since simulators' processes do without it.
"""

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as th


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


class Processes:
    """
    The processes of a run, and what they do together.

    :param device: Device of a single process. Of several processes each takes its own GPU, or the CPU if this is the CPU.
    :raises ImportError: If there are several processes and accelerate is not installed.
    """

    def __init__(self, device: "th.device") -> None:
        self.world, self.rank, self.device = int(os.environ.get("WORLD_SIZE", "1")), 0, device
        if self.world == 1:
            return
        try:
            from accelerate import PartialState  # type: ignore[import-untyped]
        except ImportError as error:
            raise ImportError("Training on several processes needs accelerate: pip install accelerate") from error
        state = PartialState(cpu=device.type == "cpu")
        self.world, self.rank, self.device = state.num_processes, state.process_index, state.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def share(self, n: int, chunk: int | None) -> list[slice]:
        """This process's part of ``n`` rows, in pieces of ``chunk`` rows; None: one piece per process."""
        chunk = chunk or math.ceil(n / self.world)
        pieces = [slice(begin, min(begin + chunk, n)) for begin in range(0, n, chunk)]
        return pieces[self.rank :: self.world]

    def sum_(self, tensor: "th.Tensor") -> None:
        """Add a tensor over all processes, in place."""
        if self.world > 1:
            import torch as th

            th.distributed.all_reduce(tensor)

    def sum_gradients(self, parameters: Sequence[Any]) -> None:
        """
        Add the gradients of parameters, which have the same order in every process, over all processes. A parameter that none
        of them used keeps none: AdamW would decay it otherwise.
        """
        if self.world == 1:
            return
        import torch as th

        used = th.tensor([float(parameter.grad is not None) for parameter in parameters], device=self.device)
        th.distributed.all_reduce(used)
        for parameter, count in zip(parameters, used.tolist(), strict=True):
            if count > 0:
                if parameter.grad is None:  # this process had no rows
                    parameter.grad = th.zeros_like(parameter)
                th.distributed.all_reduce(parameter.grad)

    def finish(self) -> None:
        """
        End this process with status 0 when all have come here. With one process it does nothing.

        Call it last in a program that was started on several processes. Otherwise an interpreter that shuts down beside
        PyTorch's communication threads sometimes aborts, and the launcher then reports a failure and ends the other
        processes, perhaps while they write files.
        """
        if self.world == 1:
            return
        import torch as th

        arrived = th.zeros(1, device=self.device)
        self.sum_(arrived)
        arrived.item()  # waits, also on a GPU
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
