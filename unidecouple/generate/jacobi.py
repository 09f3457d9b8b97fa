"""Several image tokens a pass, the same tokens: Jacobi iteration over a window of guesses, with each position's chance fixed.

Speculative Jacobi decoding (arXiv 2410.01699) draws its random numbers anew in every pass, and needs a probabilistic rule of
acceptance to keep the distribution. Here (ours) each position has its one uniform number, by which its token is a function of the
tokens before it. A guess that comes out of a pass as it went in, with all before it, is then the token that drawing one by one
would give: nothing is lost by construction, whatever the guesses were. They only decide how many passes it takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from unidecouple.batch import Modality, Task
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.generate.drawing import ImageJob, prompt_ids, read_prompts
from unidecouple.generate.one_task import one_task
from unidecouple.generate.padding import positions
from unidecouple.generate.sampler import Sampler, uniforms
from unidecouple.models.base import UnifiedModel


@dataclass(frozen=True)
class Drawn:
    """A picture's image tokens (N,), and the passes through the decoder that they took, the prompt's not counted."""

    tokens: Tensor
    passes: int


class JacobiDrawing:
    """Draws one picture at a time, up to ``window`` tokens a pass.

    For few rows, where a pass over several tokens takes hardly longer than over one: on a GPU, not on a CPU.

    Args:
        model: any model with our decoder; what serves generation is taken from it.
        builder: its sequence builder.
        window: guesses a pass; 1 is drawing one by one.

    Raises:
        ValueError: ``window`` is no number of tokens, or rows of tokens end in text (Emu3).
    """

    def __init__(self, model: UnifiedModel, builder: SequenceBuilder, window: int = 16) -> None:
        if window < 1:
            raise ValueError(f"window={window} must be at least 1 token")
        if builder.row_end:
            raise ValueError("rows of tokens that end in text cannot be guessed ahead: use Drawing, which tells the model of them")
        self.model, self.builder, self.window = one_task(model, Task.T2I), builder, window

    @torch.no_grad()
    def draw(self, order: ImageJob) -> Drawn:
        """The tokens that ``Drawing`` gives for ``order``, up to rounding in ties."""
        length: int = self.model.num_image_tokens
        uniform = uniforms(order.seed, length).to(self.model.device)
        cache = DynamicCache(config=self.model.config.text_config)
        mask, hidden = self._read(order, cache)
        prompt, known, passes = mask.shape[1], 1, 0
        tokens = uniform.new_zeros(length, dtype=torch.long)
        guess = self._chosen(order, hidden.expand(-1, self.window, -1), uniform[: self.window])  # one distribution, many chances
        tokens[0] = guess[0]
        guess = guess[1:]
        while known < length:
            width = min(self.window, length - known)
            guess = guess[: width - 1]
            fed = torch.cat([tokens[known - 1 : known], guess])
            mask = torch.cat([mask[:, : prompt + known - 1], mask.new_ones(len(mask), len(fed))], 1)
            hidden = self._pass(fed.expand(len(mask), -1), mask, cache)
            made = self._chosen(order, hidden, uniform[known : known + len(fed)])
            right = int((guess == made[:-1]).long().cumprod(0).sum())  # the one wait of a pass: how far it got
            tokens[known : known + right + 1] = made[: right + 1]
            known, passes = known + right + 1, passes + 1
            if len(made) > right + 1:
                cache.crop(right + 1 - len(made))  # keys and values of guesses that were wrong, or may be
            more = uniform[known + len(made) - right - 1 : known + self.window]
            ahead = self._chosen(order, hidden[:, -1:].expand(-1, len(more), -1), more)
            guess = torch.cat([made[right + 1 :], ahead])
        return Drawn(tokens, passes)

    def _read(self, order: ImageJob, cache: DynamicCache) -> tuple[Tensor, Tensor]:
        sides = (False, True) if order.guidance_scale != 1 else (False,)
        prompts = [prompt_ids(self.builder, order, away) for away in sides]
        mask, read = read_prompts(self.model, self.builder, prompts, cache)
        return mask, read.last_hidden_state[:, -1:]

    def _pass(self, fed: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        told = torch.ones(1, 1, dtype=torch.long, device=fed.device)
        out = self.model.decoder(
            inputs_embeds=self.model.embed_image_tokens(fed),
            attention_mask=mask,
            position_ids=positions(mask)[:, -fed.shape[1] :],
            cache=cache,
            task_ids=told * int(Task.T2I),
            modality_ids=told * int(Modality.IMAGE_OUT),
        )
        return out.last_hidden_state

    def _chosen(self, order: ImageJob, hidden: Tensor, uniform: Tensor) -> Tensor:
        """Tokens (T,) after states (rows, T', H), T' at least T, each by its own uniform number (T,)."""
        if not len(uniform):
            return uniform.long()
        logits = self.model.image_logits(hidden[:, : len(uniform)]).float()
        guided = logits[-1] + order.guidance_scale * (logits[0] - logits[-1])
        return Sampler([order.choice] * len(uniform), uniform.device)(guided, uniform)
