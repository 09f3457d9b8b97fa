"""A decoding step that is recorded once per size and replayed from then on: on a GPU as a CUDA graph.

One token of Janus-Pro-1B is some 600 small kernels, which Python launches far more slowly than a GPU runs them. A graph launches
them at once. It repeats the very kernels on the very addresses, so a step that is recorded reads and writes tensors that stay where
they are, and its sizes are padded to a few.

**The capture has never run on a GPU.** What surrounds it (buffers, sizes, padding, what is recorded when) is tested on a CPU with
a recorder that repeats a step's operators on the tensors that it saw, as a graph does.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor


class Recorder(Protocol):
    """Makes a step repeatable."""

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        """Run ``step`` once, and return what repeats it: its operators, on the tensors it used. It may be called without effect."""


class GraphedStep:
    """``step`` of one size after another: recorded when a size first comes, repeated when it comes again.

    Args:
        step: takes a size; reads and writes tensors that stay in their places, asks the host for nothing, returns nothing.
        recorder: None calls ``step`` every time.
    """

    def __init__(self, step: Callable[..., None], recorder: Recorder | None) -> None:
        self._step, self.recorder = step, recorder
        self._made: dict[tuple[Hashable, ...], Callable[[], None]] = {}

    def __call__(self, *size: Hashable) -> None:
        """One step of ``size``."""
        if self.recorder is None:
            self._step(*size)
        elif size in self._made:
            self._made[size]()
        else:
            self._made[size] = self.recorder(partial(self._step, *size))

    def padded(self, count: int, most: int) -> int:
        """Rows, of ``most``, to compute for ``count``: the next power of two where steps are recorded, so that sizes are few."""
        return count if self.recorder is None else min(1 << (count - 1).bit_length(), most)


class CudaGraphs:
    """Records a step as a CUDA graph; all graphs of one recorder share their memory.

    They may, since a step leaves its results in tensors of its own and no two run at a time: none of the shared memory is read
    after the graph that wrote it.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        """See ``Recorder``: the one run warms up what must not be set up within a capture (cuBLAS); capturing runs nothing.

        Raises:
            RuntimeError: CUDA cannot capture the step.
        """
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                step()
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            try:  # other threads, of a server say, may go on using the device
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    step()
            except RuntimeError as error:
                raise RuntimeError(f"a decoding step cannot be captured as a CUDA graph: {error}; --eager does without") from error
        return graph.replay


def recorder_of(device: torch.device) -> Recorder | None:
    """CUDA graphs on a CUDA device; None elsewhere, where there is no launch to save."""
    return CudaGraphs(device) if device.type == "cuda" else None


def fill(buffer: Tensor, values: Sequence[float], rest: float = 0) -> None:
    """Write ``values`` to ``buffer`` (N,) or (N, 1) in its place, and ``rest`` behind them."""
    padded = [*values, *[rest] * (len(buffer) - len(values))]
    buffer.copy_(torch.tensor(padded, dtype=buffer.dtype).view(buffer.shape))
