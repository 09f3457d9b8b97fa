"""Low-rank residuals distilled on prompts alone: the tuned model draws its own images, and the residuals match its logits.

Truncation keeps the weights' energy, not the outputs; a rank too low for the first may be enough for the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from unidecouple import bounds
from unidecouple.batch import NO_IMAGE_TOKEN, Batch, Task
from unidecouple.convert.load import assemble
from unidecouple.convert.parts import Part
from unidecouple.data.sequences import SequenceBuilder, collate
from unidecouple.delta.blend import load_whole
from unidecouple.delta.checkpoint import Checkpoint
from unidecouple.delta.decoupled import Plan, parts
from unidecouple.generate.image import draw_tokens
from unidecouple.generate.jobs import ImageJob
from unidecouple.generate.sampling import SamplingParams
from unidecouple.models.base import UnifiedModel
from unidecouple.models.processing import UnifiedProcessor
from unidecouple.run import RunConfig
from unidecouple.source import PrintLine, data_source

MOST_PROMPTS = 512
"""Of a recipe's data."""
_SAID_EVERY = 20


@dataclass(frozen=True)
class Distillation:
    """How residuals are distilled.

    Attributes:
        steps: of Adam.
        prompts: what images are generated of.
        recipe: of a run, the prompts of whose data are used in place of ``prompts``, at most ``MOST_PROMPTS``.
        learning_rate: peak; cosine to zero.
        batch_size: prompts per step.
        seed: of the images and the order of prompts.
    """

    steps: int
    prompts: Sequence[str] = ()
    learning_rate: float = 1e-3
    batch_size: int = 8
    seed: int = 0
    recipe: RunConfig | None = None

    def __post_init__(self) -> None:
        bounds.at_least(1, self, "steps", "batch_size")
        bounds.above(0, self, "learning_rate")
        if bool(self.prompts) == (self.recipe is not None):
            raise ValueError("distillation needs prompts: give a file with one per line (--prompts), or a recipe (--recipe)")


def distill(plan: Plan, teacher: Checkpoint, how: Distillation, device: torch.device, cache: Path, say: PrintLine) -> Part:
    """Train the deltas of generation to the logits of ``teacher``; returns them by name, in the types of the plan.

    Cross-entropy of the teacher's distribution at every image token (Hinton et al. 2015, arXiv 1503.02531, temperature 1). The
    images are sampled from the teacher once, one per prompt, without guidance.

    Raises:
        ValueError: a prompt or the recipe's data cannot be read, or there is no delta of generation that trains.
    """
    processor = plan.sources.base.processor
    if processor is None:
        raise ValueError("the base has no tokenizer.json, so no prompt can be read: copy the tokenizer's files to it")
    builder = SequenceBuilder(processor)
    guide = load_whole(teacher).to(device)
    prompts = _prompts(how, guide, processor, builder, cache)
    say(f"distillation: generating images of {len(prompts)} prompts")
    sampling = SamplingParams(guidance_scale=1.0)
    jobs = [ImageJob(ids, builder.hidden_prompt(ids), (how.seed, n, 0), sampling) for n, ids in enumerate(prompts)]
    tokens = draw_tokens(guide, builder, jobs)
    state: Part = {name: tensor for part in parts(plan) for name, tensor in part.items()}
    student = assemble(plan.config, state, plan.sources.base.folder, torch.float32).to(device).requires_grad_(requires_grad=False)
    trained = {name: weight for name, weight in student.named_parameters() if ".deltas.t2i." in name}
    if not trained:
        raise ValueError("generation has no weights of its own to distil: leave out --distill-steps")
    optimizer = torch.optim.Adam([weight.requires_grad_() for weight in trained.values()], how.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, how.steps)
    order = torch.Generator().manual_seed(how.seed)
    for step in range(how.steps):
        picked = torch.randint(len(prompts), (min(how.batch_size, len(prompts)),), generator=order).tolist()
        samples = [builder.continued(prompts[n], tokens[n].tolist()) for n in picked]
        loss = _gap(student, guide, collate(samples, builder.tokenizer.pad_token_id).to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % _SAID_EVERY == 0 or step == how.steps - 1:
            say(f"distillation {step + 1}/{how.steps}: KL divergence {float(loss.detach()):.4f} nats per token")
    shapes = plan.shapes
    return {name: weight.detach().cpu().to(shapes[name].dtype) for name, weight in trained.items()}


def _prompts(
    how: Distillation, model: UnifiedModel, processor: UnifiedProcessor, builder: SequenceBuilder, cache: Path
) -> list[list[int]]:
    """Ids of every prompt, up to where its image starts."""
    if how.recipe is None:
        return [builder.generation_prompt(prompt) for prompt in how.prompts]
    source = data_source(how.recipe).open(how.recipe, model, processor, builder, cache, lambda what, done, of: None)
    if Task.T2I not in source.measurable:
        raise ValueError("the recipe has no prompts: set data.t2i_batch_size to 1 or more, or give prompts")
    found: dict[tuple[int, ...], None] = {}  # each text once, in the order of the data
    for number in range(source.distinct_samples(Task.T2I, MOST_PROMPTS)):
        for batch in source.distinct_batch(Task.T2I, 1, number):
            if batch.pixel_values is None and (batch.prompt_dropped is None or not batch.prompt_dropped.any()):
                first = int((batch.image_tokens[0] != NO_IMAGE_TOKEN).int().argmax())
                found[tuple(batch.input_ids[0, :first].tolist())] = None
    return [list(ids) for ids in found]


def _gap(student: UnifiedModel, teacher: UnifiedModel, batch: Batch) -> Tensor:
    """KL divergence of the student from the teacher, mean over image tokens."""
    at = batch.image_tokens[:, 1:] != NO_IMAGE_TOKEN
    mine = student.image_logits(student.decode_batch(batch).last_hidden_state[:, :-1][at])
    with torch.no_grad():
        theirs = teacher.image_logits(teacher.decode_batch(batch).last_hidden_state[:, :-1][at])
    return F.kl_div(mine.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="batchmean")
