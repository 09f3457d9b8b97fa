"""More answers or pictures than there is room for: each is taken in as soon as another is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

Wanted_contra = TypeVar("Wanted_contra", contravariant=True)
Made_co = TypeVar("Made_co", covariant=True)


class Maker(Protocol[Wanted_contra, Made_co]):
    """What makes several at a time, each joining and leaving on its own."""

    @property
    def room(self) -> int:
        """How many can be added now."""
        ...

    def add(self, wanted: Sequence[Wanted_contra], /) -> Sequence[Made_co]:
        """Start on all of ``wanted``, in order."""
        ...

    def step(self) -> Sequence[Made_co]:
        """Go on with all, and return those that are done."""
        ...


def in_turn(maker: Maker[Wanted_contra, Made_co], wanted: Sequence[Wanted_contra]) -> Iterator[tuple[int, Made_co]]:
    """Have all of ``wanted`` made; gives each with its number as soon as it is done, before others are added."""
    waiting, numbers = list(enumerate(wanted)), dict[int, int]()
    while waiting or numbers:
        coming, waiting = waiting[: maker.room], waiting[maker.room :]
        if coming:
            added = maker.add([one for _, one in coming])
            numbers |= {id(made): number for (number, _), made in zip(coming, added, strict=True)}
        for made in maker.step():
            yield numbers.pop(id(made)), made
