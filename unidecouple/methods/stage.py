"""Training stages: the weights that train, their rates, tasks, losses' gradients and low-rank updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from unidecouple import bounds
from unidecouple.batch import NO_IMAGE_TOKEN, Batch, JointBatch, Task
from unidecouple.methods.gradient import Gradient, Sum
from unidecouple.methods.structure import Structure
from unidecouple.models.shield import SharedExpertGradScale

PARTS: dict[str, tuple[str, ...]] = {
    "vision": ("model.vision_model.*", "model.aligner.*"),
    "generation": ("model.generation_*",),
    "embeddings": ("model.language_model.embed_tokens.*",),
    "text_head": ("lm_head.*",),
    "norms": ("model.language_model.*norm.weight",),
    "attention": ("model.language_model.*.self_attn.?_proj.weight", "model.language_model.*.self_attn.?_proj.bias"),
    "ffn": ("*.mlp.gate_proj.weight", "*.mlp.up_proj.weight", "*.mlp.down_proj.weight"),
    "task_router": ("*.mlp.router.weight", "*.context_router.*"),
    "expert_router": ("*.mlp.gate.weight",),
    "experts": ("*.mlp.experts.gate_up_proj", "*.mlp.experts.down_proj"),
    "shared_expert": ("*.mlp.shared_expert.*_proj.weight", "*.mlp.shared_expert.*_proj"),
    "alpha": ("*.mlp.alpha",),
    "lora": ("*lora_?",),
    "deltas": ("*.deltas.*",),
}
"""Names for groups of weights; recipes may also give patterns (fnmatch) on parameter names themselves."""


@dataclass(frozen=True)
class Lora:
    """Low-rank updates added when a stage starts (arXiv 2106.09685), named as PEFT names them.

    Attributes:
        r: rank; the paper's stage 2 uses 16.
        lora_alpha: numerator of the scale ``lora_alpha / r``.
        targets: modules with LoRA, among attention, experts, shared_expert, mlp and router (routers are small and usually trained
            in full, by ``train``).
        per_task: targets with one LoRA per task instead of one for both. Ours, beyond the paper.
    """

    r: int = 16
    lora_alpha: float = 32.0
    targets: tuple[str, ...] = ("attention", "experts", "shared_expert")
    per_task: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        bounds.at_least(1, self, "r")
        bounds.above(0, self, "lora_alpha")

    def configure(self) -> dict[str, Any]:
        """Return the fields of the text configuration that the updates set."""
        targets = {"lora_targets": list(self.targets), "lora_per_task": list(self.per_task)}
        return {"lora_rank": self.r, "lora_alpha": self.lora_alpha, **targets}


@dataclass(frozen=True)
class GradientShielding:
    """Early gradient shielding (Symbiotic-MoE, arXiv 2604.07753, section 3.3; Rosetta, arXiv 2607.00293: 5000 steps).

    Generation's tokens pass through the shared expert, but their gradient into its weights (and low-rank updates) is scaled: by 0
    for ``steps`` steps of the stage, then by ``scale_after``. The gradient to the layers below is not scaled: our reading of "send
    no gradient into it". alpha, which Symbiotic-MoE lacks, is not shielded.

    Attributes:
        steps: number of steps with factor 0, from the start of the stage.
        scale_after: factor after these steps.
        tokens: "image_out" shields image tokens to be generated, the paper's generation group; "task" their prompts, too.
    """

    RENAMED_VALUES: ClassVar[dict[str, dict[str, str]]] = {"tokens": {"drawn": "image_out"}}

    steps: int = 500
    scale_after: float = 0.1
    tokens: Literal["image_out", "task"] = "image_out"

    def __post_init__(self) -> None:
        bounds.at_least(0, self, "steps", "scale_after")

    def on(self, batch: Batch, step: int) -> SharedExpertGradScale:
        """Return the gradient scale of the tokens of ``batch`` at ``step`` of the stage, counted from 0."""
        tokens = batch.image_tokens != NO_IMAGE_TOKEN if self.tokens == "image_out" else batch.task_ids == Task.T2I
        return SharedExpertGradScale(tokens, 0.0 if step < self.steps else self.scale_after)


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        name: shown in logs.
        share: fraction of the run's steps that this stage takes; the shares of all stages are scaled to sum to one.
        learning_rate: peak learning rate.
        train: groups of weights to train (names of ``PARTS``, or patterns of weight names), each with a factor on the learning
            rate. All other weights are frozen.
        routing: "label" routes by task label, "learned" by the model's router; None: as the model is configured.
        lora: low-rank updates added at the start of the stage.
        tasks: "both", or the only task whose samples the stage trains on; they are the same samples as with "both".
        gradient: how the tasks' gradients of shared weights are combined.
        shield: keep generation's gradient out of the shared expert at first; None: no shielding.
        lr_scheduler_type: "cosine" to ``min_lr_ratio``, or "constant".
        warmup_steps: steps in which the learning rate rises linearly from 0.
        min_lr_ratio: last learning rate of "cosine", as a fraction of the peak.
        structure: structure that the model changes to at the start of the stage, before LoRA is added; None: unchanged.
        group_lr_scale: name of a group (``GROUP_NAMES``) -> factor on the learning rate of the weights that only this group uses
            (experts and their router, set of weights, LoRA); multiplied with the factor in ``train``; 0 freezes them.
    """

    RENAMED_KEYS: ClassVar[dict[str, str]] = {"group_rates": "group_lr_scale"}
    RENAMED_VALUES: ClassVar[dict[str, dict[str, str]]] = {"group_lr_scale": {"seen": "image_in", "drawn": "image_out"}}

    name: str = "joint"
    share: float = 1.0
    learning_rate: float = 1e-3
    train: dict[str, float] = field(default_factory=dict)
    routing: Literal["learned", "label"] | None = None
    lora: Lora | None = None
    tasks: Literal["both", "mmu", "t2i"] = "both"
    gradient: Gradient = field(default_factory=Sum)
    shield: GradientShielding | None = None
    lr_scheduler_type: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 20
    min_lr_ratio: float = 0.05
    structure: Structure | None = None
    group_lr_scale: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bounds.at_least(0, self, "share", "learning_rate", "train", "warmup_steps", "group_lr_scale")
        bounds.between(0, 1, self, "min_lr_ratio")

    def of(self, tasks: Sequence[Task]) -> tuple[Task, ...]:
        """Return which of ``tasks``, those of the run's data, the stage trains on.

        Raises:
            ValueError: none.
        """
        chosen = tuple(task for task in tasks if self.tasks in ("both", task.key))
        if not chosen:
            raise ValueError(f"stage {self.name!r} has tasks={self.tasks}, but the run has no data of it: raise its batch size")
        return chosen

    @property
    def trains_rows_alone(self) -> bool:
        """Whether rows private to an absent task may go without gradients: nothing combines gradients, or scales rows' steps."""
        return not (self.group_lr_scale or self.gradient.by_task or self.gradient.parameters)

    def forward_options(self, batches: JointBatch, step: int) -> dict[str, Any]:
        """Return the keyword arguments of the model's forward that this stage's schedule sets at ``step``, counted from 0."""
        shield = None if self.shield is None else [self.shield.on(batch, step) for batch in batches]
        return {"routing": self.routing, "shield": shield}
