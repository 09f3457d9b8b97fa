"""Everything that defines a training run, on one screen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unidecouple import bounds
from unidecouple.data.mixture import Files
from unidecouple.eval.pope import PARSERS
from unidecouple.generate.sampling import SamplingParams
from unidecouple.methods.objective import Objective
from unidecouple.methods.stage import Stage
from unidecouple.methods.structure import Dense, Structure


@dataclass(frozen=True)
class Lesson:
    """A stretch of steps at the start of a run in which understanding is taught in a way of its own.

    Attributes:
        kind: "pointing" (picture, class word, at once its colour), "describing" (as pointing, then the two words of its place in
            either order), "asking" (as pointing, with a question mark and the assistant's turn before the colour), "placing" (as
            asking, for its place), "caption" (a conversation that is the caption alone), "presence" (one of POPE questions alone)
            or "conversation" (as after all lessons).
        steps: how many.
        batch_size: samples a step, in place of ``mmu_batch_size``; the sequences are short.
    """

    kind: Literal["pointing", "describing", "asking", "placing", "caption", "presence", "conversation"]
    steps: int
    batch_size: int = 64

    def __post_init__(self) -> None:
        bounds.at_least(0, self, "steps")
        bounds.at_least(1, self, "batch_size")


@dataclass(frozen=True)
class Data:
    """What a step sees.

    Attributes:
        pairs, scenes, seed: training data of the world (see ``WorldData``).
        t2i_batch_size: prompt and picture pairs a step; 0 is understanding only.
        mmu_batch_size: conversations a step; 0 is generation only.
        turns: most questions in a conversation; 0 is captions alone, as diagnoses see them.
        lessons: what a model from scratch is taught before conversations, one after the other; without them it never looks at
            the picture (docs/experiments/learning-to-look.md).
        simple_steps: steps at the start of the run whose pairs show one object with its colour named. A model that has never
            drawn otherwise learns what pictures look like and leaves the prompt unread (docs/experiments/reading-prompts.md);
            Janus-Pro's first stage starts from single objects, too (arXiv 2501.17811, section 2.2).
        cond_dropout_prob: share of prompts hidden, for classifier-free guidance.
        router_pairs: pictures of pairs that are also shown, each step, as if they were to be understood, with words at random or
            their prompt as the talk about them, to teach the task router what understanding looks like where there is little or
            no understanding data. No answer is learned from them. Ours.
    """

    pairs: int = 12000
    scenes: int = 6000
    seed: int = 0
    t2i_batch_size: int = 32
    mmu_batch_size: int = 32
    turns: int = 6
    lessons: tuple[Lesson, ...] = ()
    simple_steps: int = 0
    cond_dropout_prob: float = 0.1
    router_pairs: int = 0

    def __post_init__(self) -> None:
        bounds.at_least(1, self, "pairs", "scenes")
        bounds.at_least(0, self, "seed", "t2i_batch_size", "mmu_batch_size", "turns", "simple_steps", "router_pairs")
        bounds.between(0, 1, self, "cond_dropout_prob")

    @property
    def most_parts(self) -> int:
        """Into how many parts a step can be cut such that each holds every task."""
        sizes = (self.mmu_batch_size, self.t2i_batch_size, self.router_pairs, *(lesson.batch_size for lesson in self.lessons))
        return min((size for size in sizes if size), default=0)


@dataclass(frozen=True)
class Evaluation:
    """How a run is scored: during training on few validation samples, at its end on the test sets.

    Attributes:
        eval_steps: steps between scores during training; 0 is none.
        eval_batches: batches of held-out files per task, where a run is on files.
        eval_batch_size: held-out samples per task and batch, of every task that the held-out files have; None takes the batch sizes
            of training, and scores the tasks that are trained.
        benchmarks: published benchmarks that a run on files is scored by at its end: name -> folder of the benchmark's files. Not
            geneval, since no judge of photographs comes with the package. What follows is of the world.
        eval_images, eval_prompts: understanding pictures and prompts a tag (one picture each) then.
        pope_images: pictures of POPE at the end (18 distinct-split questions each); at least 2, whose classes differ.
        vqa_questions: questions a kind.
        prompts_per_tag: test prompts of each GenEval tag (102 exist); at least 2, since another prompt is the judge's floor.
        num_images: pictures a prompt; 4 in GenEval's protocol.
        parser: POPE's answer parser, by name.
        sampling: of image tokens; chosen on validation prompts.
    """

    eval_steps: int = 100
    eval_batches: int = 8
    eval_batch_size: int | None = None
    benchmarks: dict[str, Path] = field(default_factory=dict)
    eval_images: int = 24
    eval_prompts: int = 8
    pope_images: int = 100
    vqa_questions: int = 200
    prompts_per_tag: int = 102
    num_images: int = 4
    parser: str = "official"
    sampling: SamplingParams = field(default_factory=SamplingParams)

    def __post_init__(self) -> None:
        bounds.at_least(0, self, "eval_steps")
        bounds.at_least(1, self, "eval_batches", "eval_batch_size", "eval_prompts", "vqa_questions", "num_images")
        bounds.at_least(2, self, "eval_images", "pope_images", "prompts_per_tag")
        if "geneval" in self.benchmarks:
            raise ValueError("benchmarks names geneval, but no judge of photographs comes with the package: use `unidecouple eval`")
        if self.parser not in PARSERS:  # else it were found out when all is trained
            raise ValueError(f"unknown parser {self.parser!r}; POPE has {', '.join(PARSERS)}")

    @classmethod
    def migrate_keys(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """``values`` of a recipe with the sampling settings of version 0.1 moved into ``sampling``; and their new names."""
        moved = [name for name in values if name in ("guidance_scale", "temperature", "top_k")]
        if not moved or not isinstance(values.get("sampling", {}), Mapping):
            return dict(values), {}
        kept: dict[str, Any] = {"sampling": {}}
        for name, value in values.items():  # in the order of the layers, so the later of an old and a new name wins
            if name in moved:
                kept["sampling"][name] = value
            elif name == "sampling":
                kept["sampling"] |= value
            else:
                kept[name] = value
        return kept, {name: f"sampling.{name}" for name in moved}


@dataclass(frozen=True)
class RunConfig:
    """One training run: start, structure, data, stages, steps, seed. Saved with the run; running the saved file repeats it.

    Attributes:
        model_name_or_path: checkpoint folder to start from, or the name of a shipped base ("understanding", "unified"), or
            "scratch" for random weights around the shipped tokenizer.
        data: what a step sees of the drawn world.
        files: the user's own data, in its place.
        structure: which weights serve which task.
        objective: weights of the losses.
        stages: what trains when.
        evaluation: how it is scored.
        max_steps: steps of the run, over all stages.
        seed: of data order, new weights and sampling.
        report_to: where measurements are shown besides ``metrics.jsonl``: "tensorboard", "wandb".
        logging_steps, save_steps: in steps; save_steps 0 saves at the end only.
        save_total_limit: checkpoints kept.
        gradient_accumulation_steps: parts that a process cuts its share of a step into, to save memory; results stay the same,
            except with the load_balance loss: each micro-batch is balanced separately, and results are close.
        gradient_checkpointing: recompute decoder layers in the backward pass instead of keeping what they computed.
        dataloader_num_workers: 1 builds the next step's batch in a thread while a step computes; 0 does not. Results are the same.
        bf16: matrix products in bfloat16; weights, losses and routers stay in float32.
        max_grad_norm: clipping.
        weight_decay: of AdamW; zero keeps weights without gradient exactly where they are.
        ema_decay: d of an average of the trained weights over steps, ``ema <- d ema + (1 - d) w``, kept beside them in every
            checkpoint (``unidecouple export --ema`` writes it); None keeps none. 0.999 is usual for runs of many thousand steps.
        diagnose: measure gradient conflict before training, and it, routing and more after (``docs/diagnose.md``).
        parallel: how processes started by torchrun share the run: "ddp" (each has all weights), "fsdp" (each a share of them).
        device: "auto", "cpu" or "cuda".
    """

    model_name_or_path: str = "understanding"
    structure: Structure = field(default_factory=Dense)
    data: Data = field(default_factory=Data)
    files: Files | None = None
    objective: Objective = field(default_factory=Objective)
    stages: tuple[Stage, ...] = (Stage(),)
    evaluation: Evaluation = field(default_factory=Evaluation)
    max_steps: int = 400
    seed: int = 0
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    logging_steps: int = 20
    save_steps: int = 200
    save_total_limit: int = 1
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    dataloader_num_workers: Literal[0, 1] = 0
    bf16: bool = False
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    ema_decay: float | None = None
    diagnose: bool = True
    parallel: Literal["ddp", "fsdp"] = "ddp"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if self.files is not None and self.data != Data():
            raise ValueError("data and files are both given: data describes the drawn world, files are your own; leave one out")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must lie between 0 and 1 (0.999, say); leave it out to keep no average")
        bounds.at_least(0, self, "max_steps", "seed", "save_steps", "save_total_limit", "weight_decay")
        bounds.at_least(1, self, "logging_steps", "gradient_accumulation_steps")
        if not self.max_grad_norm > 0:  # infinite is no clipping
            raise ValueError(f"max_grad_norm={self.max_grad_norm} must be above 0")
        if self.max_steps and not sum(stage.share for stage in self.stages):
            raise ValueError(f"no stage takes a share of max_steps={self.max_steps}: give at least one, and a share above 0")

    @property
    def data_kind(self) -> Literal["files", "world"]:
        """Name of the data source, see ``plugins.DATA_SOURCES``."""
        return "world" if self.files is None else "files"

    def parts(self, processes: int) -> int:
        """Parts that a step is cut into: ``gradient_accumulation_steps`` for each of ``processes``.

        Raises:
            ValueError: some would be without a sample of every task.
        """
        parts, most = processes * self.gradient_accumulation_steps, (self.files or self.data).most_parts
        if parts > most:
            raise ValueError(
                f"a step in {parts} parts ({processes} processes x gradient_accumulation_steps={self.gradient_accumulation_steps}) "
                f"leaves some without a sample of every task, since the smallest batch size is {most}. Raise mmu_batch_size, "
                "t2i_batch_size and router_pairs, or use fewer parts"
            )
        return parts
