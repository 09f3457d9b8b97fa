"""Token sequences of the two tasks, exactly as the processor's chat template renders them, and their collation to batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unidecouple.batch import IGNORE, NO_IMAGE_TOKEN, Batch, Task
from unidecouple.data.chat import chat_format
from unidecouple.data.world.questions import Question
from unidecouple.models.processing import UniJanusProcessor


@dataclass(frozen=True)
class Sample:
    """One sample before padding; lists of one length. ``picture`` is a uint8 (H, W, 3) picture to be understood, or None."""

    input_ids: list[int]
    task_ids: list[int]
    labels: list[int]
    image_tokens: list[int]
    picture: np.ndarray | None = None


class SequenceBuilder:
    """Builds training sequences with a processor's tokenizer; a test holds them equal to the processor's own prompts.

    The BOS says nothing of the task yet, so it counts as understanding in either (see ``Task``); all else has the task of
    its sample.
    """

    def __init__(self, processor: UniJanusProcessor) -> None:
        self.tokenizer = processor.tokenizer
        self._texts: dict[str, list[int]] = {}
        self._chat = chat_format(processor)
        boi, self._placeholder, eoi = self.tokenizer.convert_tokens_to_ids(
            [self.tokenizer.boi_token, self.tokenizer.image_token, self.tokenizer.eoi_token]
        )
        self._boi, self._image = [boi], [boi, *[self._placeholder] * processor.num_image_tokens, eoi]
        _check_scale(processor)
        self._bos, self._eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id

    def understanding(self, picture: np.ndarray, turns: Sequence[Question], answered: bool = True) -> Sample:
        """A conversation about ``picture``; losses on answers and their EOS. Without ``answered`` there is no target."""
        ids, labels = [self._bos], [IGNORE]
        for index, turn in enumerate(turns):
            asked = self._ids(
                (self._chat.next_user if index else self._chat.user_with_image) + turn.text.strip() + self._chat.asked
            )
            answer = [*self._ids(self._chat.lead + turn.answer.strip() + self._chat.answered), self._eos]
            ids += [*asked, *answer]
            labels += [IGNORE] * len(asked) + (answer if answered else [IGNORE] * len(answer))
        return self._sequence(ids, labels, [NO_IMAGE_TOKEN] * len(ids), Task.MMU, picture)

    def pointing(self, picture: np.ndarray, word: str, answer: str, asked: bool) -> Sample:
        """``picture``, then ``word`` and at once its ``answer``; if ``asked`` with "?" and the assistant's turn between them."""
        shown = [self._bos, *self._image, *self._ids(word), *(self._ids(f" ?{self._chat.asked}") if asked else [])]
        target = self._ids(self._chat.lead + answer)
        labels = [IGNORE] * len(shown) + target
        return self._sequence(shown + target, labels, [NO_IMAGE_TOKEN] * len(labels), Task.MMU, picture)

    def generation(self, prompt: str, image_tokens: Sequence[int], dropped: bool = False) -> Sample:
        """A prompt and the image drawn for it; ``dropped`` hides the prompt, as classifier-free guidance needs."""
        ids = self.generation_prompt(prompt, dropped)
        return self._sequence(
            ids + [self.tokenizer.pad_token_id] * len(image_tokens),
            [IGNORE] * (len(ids) + len(image_tokens)),
            [NO_IMAGE_TOKEN] * len(ids) + list(image_tokens),
            Task.T2I,
        )

    def generation_prompt(self, prompt: str, dropped: bool = False) -> list[int]:
        """Ids up to and with the image-start token; a dropped prompt keeps its length, as Janus does: pads between BOS and it."""
        inner = self._ids(self._chat.user + prompt.strip() + self._chat.asked)
        return [self._bos, *([self.tokenizer.pad_token_id] * len(inner) if dropped else inner), *self._boi]

    def understanding_prompt(self, question: str) -> list[int]:
        """Ids of one question about one picture, up to where the answer starts."""
        return [self._bos, *self._ids(self._chat.user_with_image + question.strip() + self._chat.asked)]

    def _sequence(
        self, ids: list[int], labels: list[int], image: list[int], task: Task, picture: np.ndarray | None = None
    ) -> Sample:
        return Sample(ids, [Task.MMU, *[task] * (len(ids) - 1)], labels, image, picture)

    def _ids(self, text: str) -> list[int]:
        if text not in self._texts:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            expanded = [self._image if token == self._placeholder else [token] for token in ids]
            self._texts[text] = [token for run in expanded for token in run]
        return self._texts[text]


def _check_scale(processor: UniJanusProcessor) -> None:
    mean, std = (tuple(getattr(processor.image_processor, f"image_{name}")) for name in ("mean", "std"))
    if (mean, std) != ((0.5,) * 3, (0.5,) * 3):
        raise ValueError(f"image_mean={mean}, image_std={std}: pictures are scaled to [-1, 1], that is 0.5 in each, as in Janus")


def pixels(pictures: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W, 3) -> float (N, 3, H, W) in [-1, 1], as the processor normalises."""
    return torch.from_numpy(np.stack(list(pictures))).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def collate(sequences: Sequence[Sample], pad_token_id: int) -> Batch:
    """Right-pad ``sequences`` to one length."""
    length = max(len(s.input_ids) for s in sequences)

    def pad(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (length - len(row)) for row in rows])

    pictures = [s.picture for s in sequences if s.picture is not None]
    return Batch(
        input_ids=pad([s.input_ids for s in sequences], pad_token_id),
        attention_mask=pad([[1] * len(s.input_ids) for s in sequences], 0).bool(),
        task_ids=pad([s.task_ids for s in sequences], Task.MMU),
        labels=pad([s.labels for s in sequences], IGNORE),
        image_tokens=pad([s.image_tokens for s in sequences], NO_IMAGE_TOKEN),
        pixel_values=pixels(pictures) if pictures else None,
    )
