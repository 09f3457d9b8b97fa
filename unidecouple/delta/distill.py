"""Low-rank residuals distilled on prompts alone: the tuned model draws its own images, and the residuals match its logits.

Truncation keeps the weights' energy, not the outputs; a rank too low for the first may be enough for the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unidecouple.batch import NO_IMAGE_TOKEN, Batch
from unidecouple.convert.load import assemble
from unidecouple.convert.parts import Part
from unidecouple.data.sequences import SequenceBuilder, collate
from unidecouple.delta.blend import load_whole
from unidecouple.delta.checkpoint import Checkpoint
from unidecouple.delta.decoupled import Plan, parts
from unidecouple.generate.image import draw_tokens
from unidecouple.generate.jobs import image_jobs
from unidecouple.generate.sampling import SamplingParams
from unidecouple.models.base import UnifiedModel
from unidecouple.source import PrintLine

_SAID_EVERY = 20


@dataclass(frozen=True)
class Distillation:
    """How residuals are distilled.

    Attributes:
        steps: of Adam.
        prompts: what images are drawn of.
        learning_rate: peak; cosine to zero.
        batch_size: prompts per step.
        seed: of the images and the order of prompts.
    """

    steps: int
    prompts: Sequence[str]
    learning_rate: float = 1e-3
    batch_size: int = 8
    seed: int = 0


def distill(plan: Plan, teacher: Checkpoint, how: Distillation, device: torch.device, say: PrintLine) -> Part:
    """Train the deltas of generation to the logits of ``teacher``; returns them by name, in the types of the plan.

    Cross-entropy of the teacher's distribution at every image token (Hinton et al. 2015, arXiv 1503.02531, temperature 1). The
    images are sampled from the teacher once, one per prompt, without guidance.

    Raises:
        ValueError: there is no prompt, or no delta of generation that trains.
    """
    processor = plan.sources.base.processor
    if not how.prompts or processor is None:
        raise ValueError("distillation needs prompts: give held-out data with prompts (--data)")
    builder = SequenceBuilder(processor)
    guide = load_whole(teacher).to(device)
    sampling = SamplingParams(guidance_scale=1.0)
    tokens = draw_tokens(guide, builder, image_jobs(builder, how.prompts, 1, how.seed, sampling))
    state: Part = {name: tensor for part in parts(plan) for name, tensor in part.items()}
    student = assemble(plan.config, state, plan.sources.base.folder, torch.float32).to(device).requires_grad_(requires_grad=False)
    trained = {name: weight for name, weight in student.named_parameters() if ".deltas.t2i." in name}
    if not trained:
        raise ValueError("generation has no weights of its own to distil: leave out --distill-steps")
    optimizer = torch.optim.Adam([weight.requires_grad_() for weight in trained.values()], how.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, how.steps)
    order = torch.Generator().manual_seed(how.seed)
    for step in range(how.steps):
        picked = torch.randint(len(how.prompts), (min(how.batch_size, len(how.prompts)),), generator=order).tolist()
        samples = [builder.generation(how.prompts[n], tokens[n].tolist()) for n in picked]
        loss = _gap(student, guide, collate(samples, builder.tokenizer.pad_token_id).to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % _SAID_EVERY == 0 or step == how.steps - 1:
            say(f"distillation {step + 1}/{how.steps}: KL divergence {float(loss.detach()):.4f} nats per token")
    shapes = plan.shapes
    return {name: weight.detach().cpu().to(shapes[name].dtype) for name, weight in trained.items()}


def _gap(student: UnifiedModel, teacher: UnifiedModel, batch: Batch) -> Tensor:
    """KL divergence of the student from the teacher, mean over image tokens."""
    at = batch.image_tokens[:, 1:] != NO_IMAGE_TOKEN
    mine = student.image_logits(student.decode_batch(batch).last_hidden_state[:, :-1][at])
    with torch.no_grad():
        theirs = teacher.image_logits(teacher.decode_batch(batch).last_hidden_state[:, :-1][at])
    return F.kl_div(mine.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="batchmean")
