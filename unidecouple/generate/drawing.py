"""Pictures of many prompts at a time, each joining and leaving on its own, with guidance in one pass and nothing to wait for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from unidecouple.batch import Modality, Task
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.generate.batch_slots import BatchSlots
from unidecouple.generate.fixed import FixedDecoder, group_of
from unidecouple.generate.in_turn import in_turn
from unidecouple.generate.jobs import ImageJob
from unidecouple.generate.one_task import one_task
from unidecouple.generate.padding import left_pad, positions
from unidecouple.generate.replay import GraphedStep, Recorder, fill
from unidecouple.generate.sampler import Form, Sampler, uniforms
from unidecouple.models.base import UnifiedModel


@dataclass
class Picture:
    """A picture in the making.

    Attributes:
        job: what was asked for.
        rows: of its prompt and, if guided, of the dropped prompt.
        slot: where its tokens are kept.
        drawn: tokens so far.
        ending: whether the end of a row of tokens comes next, which is not the model's to choose.
    """

    job: ImageJob
    rows: list[int]
    slot: int
    drawn: int = 0
    ending: bool = False


class Drawing:
    """Draws up to ``most`` pictures at a time; ``add`` and ``step`` in any order.

    Args:
        model: any model with our decoder; what serves generation is taken from it (``one_task``).
        builder: its sequence builder.
        most: pictures at a time; each takes two rows of keys and values, or one without guidance.
        prompt_length: most tokens of a prompt.
        recorder: of steps, which are then padded to a few sizes; None computes every one anew.
    """

    def __init__(
        self,
        model: UnifiedModel,
        builder: SequenceBuilder,
        most: int = 16,
        prompt_length: int = 256,
        recorder: Recorder | None = None,
    ) -> None:
        self.model, self.builder, self.most = one_task(model, Task.T2I), builder, most
        self.length: int = self.model.num_image_tokens
        self._columns = builder.picture.columns if builder.row_end else self.length
        self._check_row_ends()
        self._new = self.length + self.length // self._columns * len(builder.row_end)
        self._table = self._embeddings()
        fixed, codes, device = FixedDecoder(self.model.decoder, Task.T2I), self.model.num_codes, self.model.device
        room = prompt_length + self._new
        self._rows = BatchSlots(fixed, 2 * most, room, self._embed, self.model.image_logits, codes, recorder)
        self._tokens = torch.zeros(most + 1, self.length, dtype=torch.long, device=device)  # the last slot is the padding's
        self._fed = torch.zeros(most + 1, dtype=torch.long, device=device)
        self._uniform = torch.zeros(most + 1, self.length, device=device)
        self._row_slots = torch.zeros(2 * most, dtype=torch.long, device=device)
        self._cond, self._uncond, self._slots, self._next = torch.zeros(4, most, dtype=torch.long, device=device).unbind()
        self._sampler = Sampler([], device, most)
        self._chosen = GraphedStep(self._choose, recorder)
        self._free = list(reversed(range(most)))
        self.pictures: list[Picture] = []

    @property
    def room(self) -> int:
        """Pictures that can be added now."""
        return len(self._free)

    @torch.no_grad()
    def add(self, orders: Sequence[ImageJob]) -> list[Picture]:
        """Read the prompts of ``orders``, in one pass; their pictures are drawn from the next ``step`` on.

        Raises:
            ValueError: there is no room, or a prompt is too long.
        """
        if len(orders) > self.room:
            raise ValueError(f"{len(orders)} pictures are more than the {self.room} that there is room for: wait, or raise `most`")
        new = [Picture(order, [], -1) for order in orders]
        pairs = [(picture, prompt) for picture in new for prompt in picture.job.prompts]
        self._rows.check([len(prompt) + self._new for _, prompt in pairs])
        for (picture, _), row in zip(pairs, self._read([prompt for _, prompt in pairs]), strict=True):
            picture.rows.append(row)
        for picture in new:
            picture.slot = self._free.pop()
            self._uniform[picture.slot] = uniforms(picture.job.seed, self.length).to(self._uniform.device)
        self.pictures += new
        self._gather()
        return new

    @torch.no_grad()
    def step(self) -> list[Picture]:
        """Draw one token of every picture; one that stands at the end of a row of tokens is told so instead (Emu3).

        Returns:
            Those that it completes; their ``tokens`` are theirs until the next ``add``.
        """
        drawing = [picture for picture in self.pictures if not picture.ending]
        if drawing:
            self._chosen(self._chosen.padded(len(drawing), self.most), self._sampler.form)
            self._next[: len(drawing)] += 1
        for picture in drawing:
            picture.drawn += 1
        done = [picture for picture in drawing if picture.drawn == self.length]
        if done:
            self._take_out(done)
        if self.pictures:
            self._rows.step()
        turning = [picture for picture in self.pictures if picture.ending or picture.drawn % self._columns == 0]
        for picture in turning:
            picture.ending = not picture.ending
        if turning:
            self._gather()
        return done

    def tokens(self, picture: Picture) -> Tensor:
        """(drawn,) tokens of ``picture`` so far; of a growing picture, too."""
        return self._tokens[picture.slot, : picture.drawn].clone()

    def remove(self, picture: Picture) -> None:
        """Stop drawing ``picture``; the others do not notice.

        Raises:
            ValueError: it is not being drawn.
        """
        if all(picture is not other for other in self.pictures):
            raise ValueError("the picture is not being drawn: it is done, or was removed")
        self._take_out([picture])

    def _read(self, prompts: Sequence[list[int]]) -> list[int]:
        """Pass ``prompts`` through the decoder, left-padded. Returns the rows that they got."""
        ids, mask = left_pad(prompts, self.builder.tokenizer.pad_token_id, self.model.device)
        place, cache = positions(mask), DynamicCache(config=self.model.config.text_config)
        out = self.model.decoder(
            input_ids=ids,
            attention_mask=mask,
            position_ids=place,
            cache=cache,
            task_ids=torch.where(place == 0, int(Task.MMU), int(Task.T2I)),  # the BOS counts as understanding, as in training
            modality_ids=torch.full((1, 1), int(Modality.TEXT), device=ids.device),
        )
        return self._rows.admit(cache, mask, self.model.image_logits(out.last_hidden_state[:, -1]))

    def _choose(self, pictures: int, form: Form) -> None:
        """Choose the next token of the first ``pictures`` that draw."""
        slots, place = self._slots[:pictures], self._next[:pictures]
        uncond = self._rows.logits[self._uncond[:pictures]]
        guided = self._sampler.guide(self._rows.logits[self._cond[:pictures]], uncond)
        token = self._sampler(guided, self._uniform[slots, place], form)
        self._tokens[slots, place] = token
        self._fed[slots] = token

    def _embed(self, rows: int) -> Tensor:
        """(rows, H): what the first ``rows`` rows are fed."""
        return self._table[self._fed[self._row_slots[:rows]]]

    def _take_out(self, pictures: Sequence[Picture]) -> None:
        for picture in pictures:
            self.pictures = [other for other in self.pictures if other is not picture]
            self._free.append(picture.slot)
            for row in sorted(picture.rows, reverse=True):
                last = self._rows.leave(row)
                if last is not None:
                    mover = next(other for other in self.pictures if last in other.rows)
                    mover.rows[mover.rows.index(last)] = row
        self._gather()

    def _gather(self) -> None:
        """Which rows, slots and settings belong to which picture, as tensors; filled anew only when that changes."""
        slots = {row: picture.slot for picture in self.pictures for row in picture.rows}
        fill(self._row_slots, [slots[row] for row in range(self._rows.count)], rest=self.most)
        drawing = [picture for picture in self.pictures if not picture.ending]
        fill(self._cond, [picture.rows[0] for picture in drawing])
        fill(self._uncond, [picture.rows[-1] for picture in drawing])
        fill(self._slots, [picture.slot for picture in drawing], rest=self.most)
        fill(self._next, [picture.drawn for picture in drawing])
        self._sampler.set([picture.job.sampling for picture in drawing])
        ending = [picture.slot for picture in self.pictures if picture.ending]
        self._fed[ending] = self.model.num_codes  # the table's last row

    @torch.no_grad()
    def _embeddings(self) -> Tensor:
        """(codes, H) of every image token; and what ends a row, where something does, as one more row."""
        every = torch.arange(self.model.num_codes, device=self.model.device)
        parts = [self.model.embed_image_tokens(some.unsqueeze(0))[0] for some in every.split(4096)]
        ends = torch.tensor(self.builder.row_end, dtype=torch.long, device=self.model.device)
        return torch.cat([*parts, self.model.get_input_embeddings()(ends)])

    def _check_row_ends(self) -> None:
        text = self.model.config.text_config
        if len(self.builder.row_end) > 1:
            raise ValueError(f"rows of tokens that end in {len(self.builder.row_end)} tokens: no base family has more than one")
        if self.builder.row_end and text.group_by != "task" and group_of(text, Task.T2I) != group_of(text, Task.MMU):
            raise ValueError(
                f"group_by={text.group_by!r} with rows of tokens that end in text: a drawing of two groups is for the plain loop "
                "(unidecouple.generate.image.draw)"
            )


def draw_orders(drawing: Drawing, orders: Sequence[ImageJob]) -> Tensor:
    """Image tokens (orders, tokens of a picture), as many at a time as there is room for."""
    found = torch.zeros(len(orders), drawing.length, dtype=torch.long)
    for number, picture in in_turn(drawing, orders):
        found[number] = drawing.tokens(picture).cpu()
    return found
