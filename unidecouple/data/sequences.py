"""Token sequences of the two tasks, exactly as the processor's chat template renders them, and their collation into batches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from unidecouple.batch import IGNORE, NO_IMAGE_TOKEN, Batch, Task
from unidecouple.data.chat import ChatFormat, chat_format, control_tokens
from unidecouple.data.pictures import check_scale
from unidecouple.inputs import quoted, refuse_surrogates

if TYPE_CHECKING:
    from unidecouple.models.processing import UnifiedProcessor

EncodedImage = tuple[int, ...]
"""An image as its discrete tokens."""


@dataclass(frozen=True)
class QAPair:
    """A question about an image and its correct answer; ``kind`` is the group that it is scored in."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Sample:
    """One sample before padding; its lists have one length.

    Attributes:
        input_ids, task_ids, labels: see ``Batch``.
        image_mask: True at tokens of images to be generated.
        prompt_dropped: True at pads in place of a prompt that was dropped.
        pictures: uint8 (H, W, 3) images to be understood, in order.
        images: images to be generated, in order: their tokens, or uint8 (H, W, 3) pixels that are not encoded yet.
        sources: source images, which an image is generated from, in order; as ``images``. They are among ``pictures``, too.
        source_mask: True at image tokens of source images; by default nowhere.
    """

    input_ids: list[int]
    task_ids: list[int]
    labels: list[int]
    image_mask: list[bool]
    prompt_dropped: list[bool]
    pictures: tuple[np.ndarray, ...] = ()
    images: tuple[EncodedImage | np.ndarray, ...] = ()
    sources: tuple[EncodedImage | np.ndarray, ...] = ()
    source_mask: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.source_mask:
            object.__setattr__(self, "source_mask", [False] * len(self.input_ids))

    @classmethod
    def of_tokens(cls, input_ids: list[int], task_ids: list[int], labels: list[int], image_tokens: list[int]) -> Sample:
        """A sample of text and image tokens (``NO_IMAGE_TOKEN`` at text) whose prompt is there."""
        mask = [token != NO_IMAGE_TOKEN for token in image_tokens]
        codes = tuple(token for token in image_tokens if token != NO_IMAGE_TOKEN)
        return cls(input_ids, task_ids, labels, mask, [False] * len(input_ids), images=(codes,) if codes else ())

    @property
    def image_tokens(self) -> list[int]:
        """The image token to be generated at each position, else ``NO_IMAGE_TOKEN``.

        Raises:
            ValueError: an image is not encoded yet.
        """
        return _placed(self.images, self.image_mask)

    @property
    def source_tokens(self) -> list[int]:
        """The image token of a source image at each position, else ``NO_IMAGE_TOKEN``; raises as ``image_tokens``."""
        return _placed(self.sources, self.source_mask)


def _placed(images: Sequence[EncodedImage | np.ndarray], mask: Sequence[bool]) -> list[int]:
    if any(isinstance(image, np.ndarray) for image in images):
        raise ValueError("an image of the sample has no tokens yet: encode it first")
    tokens = itertools.chain.from_iterable(images)
    return [next(tokens) if there else NO_IMAGE_TOKEN for there in mask]


_KEPT = (1 << 15, 512)
"""Most texts whose ids are cached, and most characters of one: a server never stops receiving new ones."""

TurnPart = str | np.ndarray | EncodedImage
"""Of a turn: text, a uint8 (H, W, 3) image, or the tokens of an image. Images of the assistant under ``Task.T2I`` are to be
generated, those of the user are their sources; under ``Task.MMU`` all are to be understood."""


class SequenceBuilder:
    """Builds training sequences with a processor's tokenizer; a test compares them with the processor's own prompts.

    The BOS counts as understanding in either task (see ``Task``); all other tokens have the task of their sample.

    A source image in a prompt for an image stands as in Janus-4o (arXiv 2506.18095; FreedomIntelligence/ShareGPT-4o-Image,
    train/train_janus.py): a block of its placeholders as in a question, then a block of its image tokens, then without a space the
    words. Several images follow each other in the order of the conversation (there, all precede the words).
    """

    def __init__(self, processor: UnifiedProcessor) -> None:
        self.tokenizer = processor.tokenizer
        self.num_image_tokens = processor.num_image_tokens
        self._texts: dict[str, list[int]] = {}
        self._chat = chat_format(processor)
        self._bare = processor.bare_prompts
        self._placeholder = self.tokenizer.convert_tokens_to_ids(self.tokenizer.image_token)
        chat = ChatFormat("", "", "", "", "", "", "") if self._bare else self._chat
        self._prompts = replace(chat, image=self.tokenizer.image_token)
        self.picture = form = processor.image_format
        self._opening, self.row_end, self._closing = (
            self._special_ids(text) for text in (form.opening, form.row_end, form.closing)
        )
        self.seen_tokens = form.rows * (form.columns + len(self.row_end))  # placeholders of an image to be understood
        self._image = [*self._opening, *[self._placeholder] * self.seen_tokens, *self._closing]
        pads = [self.tokenizer.pad_token_id] * self.num_image_tokens
        self._source = [*self._image, *([*self._opening, *pads, *self._closing] if processor.source_tokens else [])]
        self.source_length = len(self._source)  # tokens of a source image in a prompt for an image
        check_scale(processor)
        self._bos, self._eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        marks = "".join((*vars(self._chat).values(), form.opening, form.closing, form.row_end))
        self._control = control_tokens(self.tokenizer, marks)
        self._reserved = (*self._control.values(), *form.reserved)

    def understanding(self, picture: np.ndarray, turns: Sequence[QAPair], answered: bool = True) -> Sample:
        """A conversation about ``picture``; losses on answers and their EOS. Without ``answered`` there are no targets."""
        ids, labels = [self._bos], [IGNORE]
        for index, turn in enumerate(turns):
            asked = self._ids(
                (self._chat.next_user if index else self._chat.user_with_image) + turn.text.strip() + self._chat.asked
            )
            answer = [*self._ids(self._chat.lead + turn.answer.strip() + self._chat.answered), self._eos]
            ids += [*asked, *answer]
            labels += [IGNORE] * len(asked) + (answer if answered else [IGNORE] * len(answer))
        return _sample(ids, Task.MMU, labels, pictures=(picture,))

    def pointing(self, picture: np.ndarray, word: str, answer: str, asked: bool) -> Sample:
        """``picture``, then ``word`` and at once its ``answer``; if ``asked`` with "?" and the assistant's turn between them."""
        shown = [self._bos, *self._image, *self._ids(word), *(self._ids(f" ?{self._chat.asked}") if asked else [])]
        target = self._ids(self._chat.lead + answer)
        labels = [IGNORE] * len(shown) + target
        return _sample(shown + target, Task.MMU, labels, pictures=(picture,))

    def generation(self, prompt: str, image_tokens: Sequence[int], dropped: bool = False) -> Sample:
        """A prompt and the image generated for it; ``dropped`` replaces the prompt, as classifier-free guidance needs."""
        return self.continued(self.generation_prompt(prompt, dropped), image_tokens, dropped)

    def continued(self, prompt_ids: Sequence[int], image_tokens: Sequence[int], dropped: bool = False) -> Sample:
        """The image generated for ``prompt_ids``, ids of a ``generation_prompt``, which are ``dropped`` or not."""
        ids = list(prompt_ids)
        generated, mask = self._generated(len(image_tokens))
        missing = [dropped and 0 < place < len(ids) - len(self._opening) for place in range(len(ids))]
        mask, missing = [False] * len(ids) + mask, missing + [False] * len(generated)
        return _sample(ids + generated, Task.T2I, image_mask=mask, prompt_dropped=missing, images=(tuple(image_tokens),))

    def conversation(self, turns: Sequence[tuple[str, Sequence[TurnPart]]], task: Task, dropped: bool = False) -> Sample:
        """Turns (role, parts) with text and images in any order; equal to ``understanding`` and ``generation`` in their cases.

        Under ``Task.MMU`` losses are on the assistant's words and their EOS. Under ``Task.T2I`` they are on the tokens of the
        images generated; the assistant's words and the user's images are context there. A system turn stands in place of the
        processor's own prompt.

        Prompts without roles (Emu3) follow each other as they are (ours; Emu3 was trained on single ones).

        Args:
            turns: optionally a system turn, then user and assistant in turn.
            task: of all tokens but the BOS.
            dropped: replaces all but the images generated, source images among it, as classifier-free guidance needs.

        Raises:
            ValueError: as ``check_words``.
        """
        ids, labels, mask, missing, sources = [self._bos], [IGNORE], [False], [False], [False]
        pictures: list[np.ndarray] = []
        images: list[tuple[int, ...] | np.ndarray] = []

        def add(tokens: Sequence[int], learned: bool = False, image: Sequence[bool] | None = None) -> None:
            drop = dropped and image is None
            if drop and self._bare:
                return
            ids.extend([self.tokenizer.pad_token_id] * len(tokens) if drop else tokens)
            labels.extend(tokens if learned else [IGNORE] * len(tokens))
            mask.extend(image or [False] * len(tokens))
            missing.extend([drop] * len(tokens))
            sources.extend(self.source_mask(tokens) if task is Task.T2I and not drop else [False] * len(tokens))

        said, turns = ([turns[0]], turns[1:]) if turns[0][0] == "system" else ([], turns)
        chat = self._prompts if task is Task.T2I else self._chat
        system = [self._chat.system_opening + self._joined(parts, chat.image) + self._chat.system_closing for _, parts in said]
        prefix = "".join(system) or (self._chat.prefix if task is Task.MMU else "")
        for number, (role, parts) in enumerate(turns):
            makes_images = role == "assistant" and task is Task.T2I
            pictures += [part for part in parts if isinstance(part, np.ndarray) and not makes_images]
            if role == "user":
                opening = chat.next_user if number else prefix + chat.user
                add(self._ids(opening + self._joined(parts, chat.image) + chat.asked, keep=False, task=task))
                continue
            generated = [p for p in parts if isinstance(p, tuple) or (makes_images and isinstance(p, np.ndarray))]
            words = self._joined([p for p in parts if not any(p is image for image in generated)], chat.image)
            last = number + 1 == len(turns)
            if words or not generated:
                ending = "" if generated else chat.answered
                add(self._ids(chat.lead + words + ending, keep=False), learned=task is Task.MMU)
            for image in generated:
                add(self._opening, image=[False] * len(self._opening))
                tokens, where = self._generated(self.num_image_tokens if isinstance(image, np.ndarray) else len(image))
                add(tokens, image=where)
                if not last or image is not generated[-1]:
                    add(self._closing, image=[False] * len(self._closing))
            images += generated
            if task is Task.MMU or not last:
                add([self._eos], learned=task is Task.MMU)
        shown = () if dropped else tuple(pictures)
        others = {"sources": shown if any(sources) else (), "source_mask": sources}
        return _sample(ids, task, labels, image_mask=mask, prompt_dropped=missing, pictures=shown, images=tuple(images), **others)

    def source_mask(self, ids: Sequence[int]) -> list[bool]:
        """Return where the image tokens of source images stand in ``ids`` of a prompt for an image: True at their pads."""
        mask, at, count = [False] * len(ids), 0, self.num_image_tokens
        while len(self._source) > len(self._image) and self._placeholder in ids[at:]:
            block = list(ids).index(self._placeholder, at) - len(self._opening)
            at = block + len(self._source) - len(self._closing)
            mask[at - count : at] = [True] * count
        return mask

    def generation_prompt(self, prompt: str, dropped: bool = False, images: int = 0) -> list[int]:
        """Ids up to where the image tokens start; ``images`` source images stand before the words.

        A dropped prompt is replaced by as many pads, as in Janus; a prompt without roles is left out, as in Emu3.

        Raises:
            ValueError: as ``check_words``.
        """
        said = self._prompts.image * images + prompt.strip()
        inner = self._ids(self._prompts.user + said + self._prompts.asked, prompt, "prompt", not images, Task.T2I)
        ids = [self._bos, *inner, *self._opening]
        return self.hidden_prompt(ids) if dropped else ids

    def hidden_prompt(self, prompt_ids: Sequence[int]) -> list[int]:
        """Ids of a ``generation_prompt`` with the prompt dropped, from its ids."""
        pads = 0 if self._bare else len(prompt_ids) - 1 - len(self._opening)
        return [self._bos, *[self.tokenizer.pad_token_id] * pads, *self._opening]

    def understanding_prompt(self, question: str, images: int = 1) -> list[int]:
        """Ids of one question about ``images`` images, which stand before it, up to where the answer starts.

        deepseek-ai/Janus strips the whole message (``apply_sft_template_for_multi_turn_prompts``). So spaces between image and
        question stay, and an image without a question has no line feed after it.

        Raises:
            ValueError: as ``check_words``.
        """
        opening = self._chat.prefix + self._chat.user + self._chat.image * images
        said = (
            opening.rstrip() if images and not question.strip() else opening + (question.rstrip() if images else question.strip())
        )
        return [self._bos, *self._ids(said + self._chat.asked, question, "question")]

    def answer_ids(self, answer: str) -> list[int]:
        """Ids of an answer to such a question, without what ends it; none of an empty one.

        Raises:
            ValueError: as ``check_words``.
        """
        return self._ids(self._chat.lead + answer.strip(), answer, "answer", keep=False) if answer.strip() else []

    def passage(self, text: str) -> list[int]:
        """Ids of plain text after the BOS, outside any chat.

        Raises:
            ValueError: as ``check_words``.
        """
        return [self._bos, *self._ids(text, text, "passage", keep=False)]

    def check_words(self, words: str, what: str = "text") -> None:
        """Refuse a user's text that would change the sequence; called on every text of every command before it is tokenized.

        A control token (see ``control_tokens``) in a text would end an answer, open another speaker's turn or stand for an image.
        It is refused rather than encoded as plain text. That would not be exact for every tokenizer, since text is tokenized
        together with the template around it, and word-level tokenizers have no plain form of it.

        Args:
            words: of a question, answer, prompt, negative prompt or system turn.
            what: which of them it is, for the message.

        Raises:
            ValueError: it spells out a control token, or has half a surrogate pair.
        """
        refuse_surrogates(words, what)
        found = next((token for token in self._reserved if token in words), None)
        if found is None and words:  # a normalizer may make one of what looks otherwise
            ids = self.tokenizer(words, add_special_tokens=False)["input_ids"]
            found = next((self._control[one] for one in ids if one in self._control), None)
        if found is not None:
            raise ValueError(f"the {what} spells out {found!r}, a special token: remove it ({quoted(words)})")

    def unknown_words(self, text: str) -> tuple[int, list[str]]:
        """Number of tokens of ``text``, and the words that are not in the vocabulary (none with byte-level tokenizers)."""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        places = zip(found["input_ids"], found["offset_mapping"], strict=True)
        unknown = self.tokenizer.unk_token_id
        return len(found["input_ids"]), [text[start:end] for one, (start, end) in places if one == unknown]

    @property
    def known_words(self) -> int:
        """Entries of the vocabulary that can occur in a text."""
        return len(self.tokenizer) - len(self._control) - (self.tokenizer.unk_token is not None)

    def _generated(self, count: int) -> tuple[list[int], list[bool]]:
        """Ids and mask of an image of ``count`` tokens, row by row, each with what ends it."""
        ids: list[int] = []
        mask: list[bool] = []
        for start in range(0, count, self.picture.columns):
            row = min(self.picture.columns, count - start)
            ids += [*[self.tokenizer.pad_token_id] * row, *self.row_end]
            mask += [*[True] * row, *[False] * len(self.row_end)]
        return ids, mask

    def _special_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _joined(self, parts: Sequence[TurnPart], image: str) -> str:
        """Text of a turn and ``image``, the template's text for an image; spaces follow words.

        Raises:
            ValueError: as ``check_words``.
        """
        text, words = "", False
        for part in parts:
            if isinstance(part, str):
                self.check_words(part)
            text += " " if words and not text[-1].isspace() else ""
            if isinstance(part, str):
                text += part.rstrip() if text and not words else part.strip()
            else:
                text += image
            words = bool(text) and isinstance(part, str)
        return text.rstrip()  # see ``understanding_prompt``

    def _ids(self, text: str, words: str = "", what: str = "text", keep: bool = True, task: Task = Task.MMU) -> list[int]:
        """Ids of ``text`` with its images in full, as they stand under ``task``; cached unless a user wrote it.

        ``words``, the part of it that a user wrote, are checked first.
        """
        if text in self._texts:
            return self._texts[text]
        self.check_words(words, what)
        found = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        image = {self._placeholder: self._source if task is Task.T2I else self._image}
        ids = [token for one in found for token in image.get(one, [one])]
        if keep and len(self._texts) < _KEPT[0] and len(text) <= _KEPT[1]:
            self._texts[text] = ids
        return ids


def _sample(ids: list[int], task: Task, labels: list[int] | None = None, **others: Any) -> Sample:
    """A sample whose tokens but the BOS are of ``task``; ``others`` are fields of ``Sample``, masks False by default."""
    none = [False] * len(ids)
    tasks: list[int] = [Task.MMU, *[task] * (len(ids) - 1)]
    return Sample(ids, tasks, labels or [IGNORE] * len(ids), **({"image_mask": none, "prompt_dropped": none} | others))


def pixels(pictures: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W, 3) -> float (N, 3, H, W) in [-1, 1], as the processor normalises."""
    return torch.from_numpy(np.stack(list(pictures))).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def collate(sequences: Sequence[Sample], pad_token_id: int) -> Batch:
    """Right-pad ``sequences`` to one length."""
    length = max(len(s.input_ids) for s in sequences)

    def pad(rows: Sequence[list[int] | list[bool]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (length - len(row)) for row in rows])

    pictures = [picture for s in sequences for picture in s.pictures]
    return Batch(
        input_ids=pad([s.input_ids for s in sequences], pad_token_id),
        attention_mask=pad([[True] * len(s.input_ids) for s in sequences], False),
        task_ids=pad([s.task_ids for s in sequences], Task.MMU),
        labels=pad([s.labels for s in sequences], IGNORE),
        image_tokens=pad([s.image_tokens for s in sequences], NO_IMAGE_TOKEN),
        pixel_values=pixels(pictures) if pictures else None,
        prompt_dropped=pad([s.prompt_dropped for s in sequences], False),
        source_tokens=pad([s.source_tokens for s in sequences], NO_IMAGE_TOKEN) if any(s.sources for s in sequences) else None,
    )
