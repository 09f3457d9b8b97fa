"""The interface of what generates many results at a time, each joining and leaving between two steps (continuous batching)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, Self, TypeVar

Job_contra = TypeVar("Job_contra", contravariant=True)
Handle = TypeVar("Handle")


class Generator(Protocol[Job_contra, Handle]):
    """Generates answers or images; what is being generated is named by the object that ``add`` returned for it."""

    @property
    def free_slots(self) -> int:
        """How many jobs can be added now."""
        ...

    def add(self, jobs: Sequence[Job_contra], /) -> list[Handle]:
        """Start all of ``jobs``, at most ``free_slots``, in order."""
        ...

    def step(self) -> list[Handle]:
        """Generate one token of each. Returns those that are done."""
        ...

    def remove(self, handle: Handle, /) -> None:
        """Stop one before it is done."""
        ...

    def renew(self) -> Self:
        """Return an empty generator with the same weights and sizes."""
        ...


def generate_all(generator: Generator[Job_contra, Handle], jobs: Sequence[Job_contra]) -> Iterator[tuple[int, Handle]]:
    """Run all of ``jobs``, each as soon as there is room. Yields each with its number when it is done."""
    waiting, numbers = list(enumerate(jobs)), dict[int, int]()
    while waiting or numbers:
        coming, waiting = waiting[: generator.free_slots], waiting[generator.free_slots :]
        if coming:
            added = generator.add([job for _, job in coming])
            numbers |= {id(handle): number for (number, _), handle in zip(coming, added, strict=True)}
        for handle in generator.step():
            yield numbers.pop(id(handle)), handle
