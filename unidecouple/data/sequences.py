"""Token sequences of the two tasks, exactly as the processor's chat template renders them, and their collation to batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unidecouple.batch import IGNORE, NO_IMAGE_TOKEN, Batch, Task
from unidecouple.data.world.questions import Question
from unidecouple.models.processing import UniJanusProcessor


@dataclass(frozen=True)
class Sample:
    """One sample before padding; lists of one length. ``pictures`` are uint8 (H, W, 3), to be understood, in their order."""

    input_ids: list[int]
    task_ids: list[int]
    labels: list[int]
    image_tokens: list[int]
    pictures: tuple[np.ndarray, ...] = ()


Part = str | np.ndarray | tuple[int, ...]
"""Of a turn: words, a uint8 (H, W, 3) picture to be understood, or the image tokens of a picture to be drawn."""


class SequenceBuilder:
    """Builds training sequences with a processor's tokenizer; a test holds them equal to the processor's own prompts.

    The BOS says nothing of the task yet, so it counts as understanding in either (see ``Task``); all else has the task of
    its sample.
    """

    def __init__(self, processor: UniJanusProcessor) -> None:
        self.tokenizer = processor.tokenizer
        self._texts: dict[str, list[int]] = {}
        self._system = self._ids(processor.system_prompt) if processor.system_prompt else []
        self._user = self._ids(self.tokenizer.user_token)
        self._assistant = self._ids(self.tokenizer.assistant_token)
        self._boi = self._ids(self.tokenizer.boi_token)
        placeholders = self._ids(self.tokenizer.image_token) * processor.num_image_tokens
        self._image = [*self._boi, *placeholders, *self._ids(self.tokenizer.eoi_token)]
        self._eoi = self._ids(self.tokenizer.eoi_token)
        self.num_image_tokens = processor.num_image_tokens
        self._bos, self._eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        self._special = set(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}

    def understanding(self, picture: np.ndarray, turns: Sequence[Question], answered: bool = True) -> Sample:
        """A conversation about ``picture``; losses on answers and their EOS. Without ``answered`` there is no target."""
        ids, labels = [self._bos, *self._system], [IGNORE] * (1 + len(self._system))
        for index, turn in enumerate(turns):
            asked = [*self._user, *(self._image if index == 0 else []), *self._ids(turn.text), *self._assistant]
            answer = [*self._ids(turn.answer), self._eos]
            ids += [*asked, *answer]
            labels += [IGNORE] * len(asked) + (answer if answered else [IGNORE] * len(answer))
        return self._sequence(ids, labels, [NO_IMAGE_TOKEN] * len(ids), Task.MMU, (picture,))

    def pointing(self, picture: np.ndarray, word: str, answer: str, asked: bool) -> Sample:
        """``picture``, then ``word`` and at once its ``answer``; if ``asked`` with "?" and the assistant's turn between them."""
        shown = [self._bos, *self._image, *self._ids(word), *([*self._ids("?"), *self._assistant] if asked else [])]
        target = self._ids(answer)
        labels = [IGNORE] * len(shown) + target
        return self._sequence(shown + target, labels, [NO_IMAGE_TOKEN] * len(labels), Task.MMU, (picture,))

    def generation(self, prompt: str, image_tokens: Sequence[int], dropped: bool = False) -> Sample:
        """A prompt and the image drawn for it; ``dropped`` hides the prompt, as classifier-free guidance needs."""
        ids = self.generation_prompt(prompt, dropped)
        return self._sequence(
            ids + [self.tokenizer.pad_token_id] * len(image_tokens),
            [IGNORE] * (len(ids) + len(image_tokens)),
            [NO_IMAGE_TOKEN] * len(ids) + list(image_tokens),
            Task.T2I,
        )

    def conversation(self, turns: Sequence[tuple[str, Sequence[Part]]], task: Task, dropped: bool = False) -> Sample:
        """Turns (role, parts) with words and pictures in any order; equal to ``understanding`` and ``generation`` in their cases.

        Under ``Task.MMU`` losses are on the assistant's words and their EOS. Under ``Task.T2I`` they are on the tokens of the
        pictures drawn; the assistant's words are context there. A system turn stands in place of the processor's own prompt.

        Args:
            turns: a system turn perhaps, then user and assistant in turn.
            task: of all tokens but the BOS.
            dropped: hides all but the pictures drawn, as classifier-free guidance needs.

        Raises:
            ValueError: a text spells out a special token.
        """
        ids, labels, image = [self._bos], [IGNORE], [NO_IMAGE_TOKEN]
        pictures: list[np.ndarray] = []

        def add(tokens: Sequence[int], learned: bool = False, drawn: bool = False) -> None:
            hidden = dropped and not drawn
            ids.extend([self.tokenizer.pad_token_id] * len(tokens) if hidden else tokens)
            labels.extend(tokens if learned else [IGNORE] * len(tokens))
            image.extend([NO_IMAGE_TOKEN] * len(tokens))

        if task is Task.MMU and turns[0][0] != "system":
            add(self._system)
        for number, (role, parts) in enumerate(turns):
            answers = role == "assistant"
            add({"user": self._user, "assistant": self._assistant}.get(role, []))
            for part in parts:
                if isinstance(part, str):
                    add(self._words(part), learned=answers and task is Task.MMU)
                elif isinstance(part, np.ndarray):
                    add(self._image)
                    pictures.append(part)
                else:
                    add(self._boi, drawn=True)
                    ids.extend([self.tokenizer.pad_token_id] * len(part))
                    labels.extend([IGNORE] * len(part))
                    image.extend(part)
                    if number + 1 < len(turns) or part is not parts[-1]:
                        add(self._eoi, drawn=True)
            if answers and (task is Task.MMU or number + 1 < len(turns)):
                add([self._eos], learned=task is Task.MMU)
        return self._sequence(ids, labels, image, task, () if dropped else tuple(pictures))

    def generation_prompt(self, prompt: str, dropped: bool = False) -> list[int]:
        """Ids up to and with the image-start token; a dropped prompt keeps its length, as Janus does: pads between BOS and it."""
        inner = [*self._user, *self._ids(prompt), *self._assistant]
        return [self._bos, *([self.tokenizer.pad_token_id] * len(inner) if dropped else inner), *self._boi]

    def understanding_prompt(self, question: str) -> list[int]:
        """Ids of one question about one picture, up to where the answer starts."""
        return [self._bos, *self._system, *self._user, *self._image, *self._ids(question), *self._assistant]

    def _sequence(
        self, ids: list[int], labels: list[int], image: list[int], task: Task, pictures: tuple[np.ndarray, ...] = ()
    ) -> Sample:
        return Sample(ids, [Task.MMU, *[task] * (len(ids) - 1)], labels, image, pictures)

    def _words(self, text: str) -> list[int]:
        """Ids of a user's text, which are not kept.

        Raises:
            ValueError: it spells out a special token, which would be taken for one.
        """
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        found = self._special.intersection(ids)
        if found:
            raise ValueError(f"the text spells out {self.tokenizer.convert_ids_to_tokens(min(found))!r}, a special token")
        return ids

    def _ids(self, text: str) -> list[int]:
        if text not in self._texts:
            self._texts[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._texts[text]


def pixels(pictures: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W, 3) -> float (N, 3, H, W) in [-1, 1], as the processor normalises."""
    return torch.from_numpy(np.stack(list(pictures))).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def collate(sequences: Sequence[Sample], pad_token_id: int) -> Batch:
    """Right-pad ``sequences`` to one length."""
    length = max(len(s.input_ids) for s in sequences)

    def pad(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (length - len(row)) for row in rows])

    pictures = [picture for s in sequences for picture in s.pictures]
    return Batch(
        input_ids=pad([s.input_ids for s in sequences], pad_token_id),
        attention_mask=pad([[1] * len(s.input_ids) for s in sequences], 0).bool(),
        task_ids=pad([s.task_ids for s in sequences], Task.MMU),
        labels=pad([s.labels for s in sequences], IGNORE),
        image_tokens=pad([s.image_tokens for s in sequences], NO_IMAGE_TOKEN),
        pixel_values=pixels(pictures) if pictures else None,
    )
