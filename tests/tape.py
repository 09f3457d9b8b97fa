"""A CUDA graph's stand-in on a CPU: it notes a step's operators, and repeats them on the very tensors that it saw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("_local_scalar_dense", "nonzero", "bincount", "unique", "masked_select", "_to_copy", "item")
"""What brings numbers to the host, or has an output whose shape depends on them."""


class _Noted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if any(wait in name for wait in WAITS):
            raise RuntimeError(f"{name} waits for the host, which no graph can")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


class Tape:
    """A ``Recorder``: what Python did between the operators is not done again, and what they wrote is written where it was.

    Attributes:
        recorded: one entry a recording, how many operators it has.
        repeated: how often recordings were repeated.
    """

    def __init__(self) -> None:
        self.recorded: list[int] = []
        self.repeated = 0

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        """See ``Recorder``."""
        with _Noted() as noted:
            step()
        self.recorded.append(len(noted.calls))

        def repeat() -> None:
            self.repeated += 1
            for func, args, kwargs, out in noted.calls:
                _write(out, func(*args, **kwargs))

        return repeat


def _write(out: Any, made: Any) -> None:
    """``made`` to where ``out`` lies; views and what is written in place lie there already."""
    if isinstance(out, Tensor):
        if made.data_ptr() != out.data_ptr():
            out.copy_(made)
    elif isinstance(out, tuple | list):
        for one, other in zip(out, made, strict=True):
            _write(one, other)
    else:
        assert out == made, "an operator's number is another than when it was recorded"
