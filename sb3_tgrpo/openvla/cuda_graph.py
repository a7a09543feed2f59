"""
Recording the generation of one batch shape as a CUDA graph and replaying it: a decode step is launch-bound otherwise.

Experimental: the bookkeeping is tested, but nothing has been run on a GPU.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import torch as th

from sb3_tgrpo.openvla.prompt import Prompts

Generated = tuple[th.Tensor, th.Tensor, th.Tensor]
Generate = Callable[[th.Tensor, Prompts, th.Tensor, th.Tensor], Generated]


class Recording:
    """One recorded batch shape: fixed input tensors, the graph, fixed output tensors."""

    def __init__(
        self,
        generate: Generate,
        pool: Any,
        stream: th.cuda.Stream,
        patches: th.Tensor,
        prompts: Prompts,
        noise: th.Tensor,
        scale: th.Tensor,
    ) -> None:
        self.inputs = tuple(t.clone() for t in (patches, prompts.input_ids, noise, scale))
        patches, input_ids, noise, scale = self.inputs
        # Kept: the graph reads the padding offsets where they lie.
        self.prompts = prompts = replace(prompts, input_ids=input_ids)
        # Lazy initialisation (cuBLAS workspaces, kernel selection) must not happen while recording.
        stream.wait_stream(th.cuda.current_stream())
        with th.cuda.stream(stream):
            generate(patches, prompts, noise, scale)
        th.cuda.current_stream().wait_stream(stream)
        self.graph = th.cuda.CUDAGraph()
        with th.cuda.graph(self.graph, pool=pool, stream=stream):
            self.outputs = generate(patches, prompts, noise, scale)

    def replay(self, patches: th.Tensor, prompts: Prompts, noise: th.Tensor, scale: th.Tensor) -> Generated:
        for fixed, new in zip(self.inputs, (patches, prompts.input_ids, noise, scale), strict=True):
            fixed.copy_(new)
        self.graph.replay()
        # Copied at once: the graphs share one memory pool, so the next replay may overwrite these.
        tokens, log_prob, hidden = self.outputs
        return tokens.clone(), log_prob.clone(), hidden.clone()


class GraphedGeneration:
    """
    Calls a generation function through CUDA graphs, one per batch shape and state, the least recently used ones dropped. A
    shape is recorded when it comes for the second time.

    Weights are read where they lie: an optimiser's in-place update is seen, a replaced parameter is not (``clear`` then).

    :param generate: Free of host synchronisation; see ``OpenVLA._generate``.
    :param state: What else ``generate`` branches on in Python, which a graph can't see.
    :param max_graphs: Recordings kept.
    """

    def __init__(self, generate: Generate, state: Callable[[], Hashable], max_graphs: int = 16) -> None:
        self._generate = generate
        self._state = state
        self._max_graphs = max_graphs
        self._recordings: OrderedDict[tuple, Recording] = OrderedDict()
        self._seen: Counter[tuple] = Counter()
        self._pool: Any = None
        self._stream: th.cuda.Stream | None = None

    def clear(self) -> None:
        """Forget all recordings (weights were moved, replaced or wrapped)."""
        self._recordings.clear()
        self._seen.clear()
        self._pool = self._stream = None

    def __call__(self, patches: th.Tensor, prompts: Prompts, noise: th.Tensor, scale: th.Tensor) -> Generated:
        with th.cuda.device_of(patches):  # streams and graphs are the current device's, which need not be the model's
            shapes = (tuple(patches.shape), patches.dtype, tuple(prompts.input_ids.shape), prompts.padding, tuple(noise.shape))
            key = (*shapes, self._state())
            if key not in self._recordings:
                self._seen[key] += 1
                if self._seen[key] < 2:
                    return self._generate(patches, prompts, noise, scale)
                if self._pool is None or self._stream is None:
                    # One stream for all: graphs only share the pool's memory if they were recorded on the same one, and
                    # torch's own belongs to the device that was current when the process recorded its first graph.
                    self._pool, self._stream = th.cuda.graph_pool_handle(), th.cuda.Stream(patches.device)
                if len(self._recordings) >= self._max_graphs:
                    self._recordings.popitem(last=False)
                self._recordings[key] = Recording(self._generate, self._pool, self._stream, patches, prompts, noise, scale)
            self._recordings.move_to_end(key)
            return self._recordings[key].replay(patches, prompts, noise, scale)
