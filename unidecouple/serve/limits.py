"""Limits of a server."""

from __future__ import annotations

from dataclasses import dataclass

from unidecouple.bounds import above

LAST_STEP_SECONDS = 1.0
"""Seconds after ``drain_seconds`` for the last step of the model, which Python cannot interrupt; then it is abandoned."""


@dataclass(frozen=True)
class Limits:
    """Bounds on requests; what exceeds one is refused with a 4xx that names it.

    Attributes:
        body_bytes: of one request.
        image_bytes: of one encoded image.
        pixels: of one image, as its header states, before decoding.
        side: pixels of one image's longer side, as its header states.
        aspect: of an image's longer side to its shorter one.
        pictures: in one conversation.
        source_images: of one image edit; each takes room for its tokens beside every image that is generated.
        characters: of all text of a conversation, or of a prompt.
        n: choices, or images, of one request.
        queue: choices, and as many images, that wait; more get a 429.
        requests: open at a time, waiting and incoming ones included; more get a 429.
        uploads: images kept for later requests; the oldest go first.
        open_bytes: of the bodies of all open requests together; more get a 429.
        read_seconds: until a request's body is there.
        drain_seconds: that a shutdown waits for running work.
    """

    body_bytes: int = 20 << 20
    image_bytes: int = 10 << 20
    pixels: int = 25_000_000
    side: int = 16_384
    aspect: float = 100.0
    pictures: int = 8
    source_images: int = 2
    characters: int = 20_000
    n: int = 8
    queue: int = 64
    requests: int = 256
    uploads: int = 256
    open_bytes: int = 256 << 20
    read_seconds: float = 30.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        above(0, self, *vars(self))
        if self.n > self.queue:
            raise ValueError(f"n={self.n} choices of one request would never fit into a queue of {self.queue}: raise the queue")
