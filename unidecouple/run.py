"""Everything that defines a training run, on one screen."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from unidecouple import bounds, plugins
from unidecouple.config.plugin_union import PluginUnion
from unidecouple.data.settings import DataSettings
from unidecouple.eval.pope import PARSERS
from unidecouple.generate.sampling import SamplingParams
from unidecouple.methods.objective import Objective
from unidecouple.methods.stage import Stage
from unidecouple.methods.structure import Dense, Structure
from unidecouple.models.compressed import Storage


def data_settings() -> tuple[type[DataSettings], ...]:
    """Classes of ``RunConfig.data``, in the order of ``plugins.DATA_SOURCES``."""
    return tuple(plugins.found(plugins.DATA_SOURCES, kind).settings for kind in plugins.DATA_SOURCES)


def synthetic_data() -> DataSettings:
    """The synthetic benchmark's data in its usual size."""
    settings: type[DataSettings] = plugins.found(plugins.DATA_SOURCES, plugins.SYNTHETIC_DATA).settings
    return settings()


DataConfig = Annotated[DataSettings, PluginUnion(data_settings)]
"""The typed union that recipes choose from by ``kind``."""

_SIZES_OF_0_1 = ("eval_images", "eval_prompts", "pope_images", "vqa_questions", "prompts_per_tag", "num_images")
_DATA_OF_0_1 = {"pairs": 12000, "scenes": 6000, "seed": 0, "turns": 6, "lessons": [], "simple_steps": 0, "router_pairs": 0}


@dataclass(frozen=True)
class Evaluation:
    """How a run is scored: during training on few validation samples, at its end on the test sets.

    Attributes:
        eval_steps: steps between two scorings during training; 0 turns them off.
        eval_batches: batches of held-out samples per task, for runs on your own files.
        eval_batch_size: held-out samples per task and batch, for every task in the held-out files; None takes the batch sizes of
            training and scores the trained tasks only.
        num_samples: held-out prompts that a run on your own files generates an image for at its end, and held-out questions that
            it answers: kept in ``samples.json`` and shown side by side by ``compare``.
        benchmarks: published benchmarks to score at the end of a run on your own files: name -> folder of the benchmark's files.
            geneval is not possible, since the package has no judge of photographs.
        parser: name of the answer parser of the synthetic POPE.
        sampling: how image tokens are sampled for scores on the synthetic benchmark.
    """

    eval_steps: int = 100
    eval_batches: int = 8
    eval_batch_size: int | None = None
    num_samples: int = 0
    benchmarks: dict[str, Path] = field(default_factory=dict)
    parser: str = "official"
    sampling: SamplingParams = field(default_factory=SamplingParams)

    def __post_init__(self) -> None:
        bounds.at_least(0, self, "eval_steps", "num_samples")
        bounds.at_least(1, self, "eval_batches", "eval_batch_size")
        if "geneval" in self.benchmarks:
            raise ValueError("benchmarks names geneval, but no judge of photographs comes with the package: use `unidecouple eval`")
        if self.parser not in PARSERS:  # else the error would come after training
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
        model_name_or_path: checkpoint to start from: a folder in any layout, a run's folder, a Hub id, or a shipped base
            ("understanding", "unified"); or "scratch" for random weights around the shipped tokenizer.
        data: training data, chosen by ``kind``: your own files or the synthetic benchmark. From version 0.3 a recipe must name it;
            until then a recipe without it trains on the synthetic benchmark, with a warning.
        structure: which weights serve which task.
        objective: weights of the losses.
        stages: training stages, in order.
        evaluation: how the run is scored, during training and at its end.
        max_steps: training steps of all stages together. A finished run continues with a higher one. -1: by ``num_train_epochs``.
        num_train_epochs: passes over the files, of the task with more samples per batch size; max_steps above 0 takes precedence.
        seed: random seed of data order, new weights and sampling.
        report_to: trackers that receive the metrics of ``metrics.jsonl``: "tensorboard", "wandb", or your own tracker as
            "package.module:Class" (``train/trackers.py``).
        logging_steps, save_steps: steps between two log lines, and between two checkpoints; save_steps 0 saves at the end only.
        save_total_limit: number of newest checkpoints that are kept; the best one is kept in addition.
        save_only_model: leave the optimizer state out of the last checkpoint; then the run cannot continue with a higher max_steps.
        load_best_model_at_end: the run ends with the checkpoint of the best validation score of its last stage; later ones are
            moved to the folder "later".
        metric_for_best_model: "loss" (mean over tasks on held-out files), or a benchmark that validation scores: "answers",
            "image_tokens", "pope". A prefix "eval_" is ignored.
        greater_is_better: direction of that metric; None is false for a name that ends in "loss", else true.
        early_stopping_patience: validation scores of the last stage without improvement after which the run ends; None: never.
        early_stopping_threshold: an improvement must be larger than this.
        extended_from: steps of the run at its first end; set where a finished run continues. Earlier stages keep their lengths.
        gradient_accumulation_steps: micro-batches per step and process, to save memory. Results stay the same, except with
            the load_balance loss, which is computed per micro-batch; results are then close.
        gradient_checkpointing: recompute decoder layers in the backward pass instead of storing their activations.
        dataloader_num_workers: 1 builds the next step's batch in a thread while a step computes; 0 does not. Results are the same.
        bf16: matrix products in bfloat16; weights, losses and routers stay in float32.
        quantize_frozen: how linear layers that no stage trains are stored while the run trains: "bf16", "int8", "nf4" or "fp4";
            None: in float32. Checkpoints contain them in full. All but "bf16" need the extra ``quantized``. Not with fsdp on
            several processes.
        optim: "adamw_torch_fused", or "adamw_8bit": AdamW with states of 8 bits (bitsandbytes, arXiv 2110.02861), which needs the
            extra ``quantized``. Not with fsdp on several processes.
        tf32: on a GPU, float32 matrix products with inputs rounded to TF32 (10 bits): several times as fast, routers included.
        max_grad_norm: largest norm of the gradient; larger gradients are scaled down to it.
        weight_decay: weight decay of AdamW; with 0, weights without gradient do not change.
        ema_decay: d of an average of the trained weights over steps, ``ema <- d ema + (1 - d) w``, kept beside them in every
            checkpoint (``unidecouple export --ema`` writes it); None keeps none. 0.999 is usual for runs of many thousand steps.
        diagnose: measure gradient conflict before and after training, and routing and attention after it (``docs/diagnose.md``).
        parallel: how processes started by torchrun share the run: "ddp" (each has all weights) or "fsdp" (each has a shard).
        device: "auto", "cpu" or "cuda".
        add_tokens: words added to the tokenizer, each with a row in the embeddings and in the text head, at the mean of the other
            rows. Words that are there already are left as they are. Not for Emu3, whose vocabulary ends in image tokens.
    """

    model_name_or_path: str = "understanding"
    structure: Structure = field(default_factory=Dense)
    data: DataConfig = field(default_factory=synthetic_data)
    objective: Objective = field(default_factory=Objective)
    stages: tuple[Stage, ...] = (Stage(),)
    evaluation: Evaluation = field(default_factory=Evaluation)
    max_steps: int = 400
    num_train_epochs: float | None = None
    seed: int = 0
    report_to: tuple[str, ...] = ("tensorboard",)
    logging_steps: int = 20
    save_steps: int = 200
    save_total_limit: int = 1
    save_only_model: bool = False
    load_best_model_at_end: bool = False
    metric_for_best_model: str = "loss"
    greater_is_better: bool | None = None
    early_stopping_patience: int | None = None
    early_stopping_threshold: float = 0.0
    extended_from: int = 0
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    dataloader_num_workers: Literal[0, 1] = 0
    bf16: bool = False
    quantize_frozen: Storage | None = None
    optim: Literal["adamw_torch_fused", "adamw_8bit"] = "adamw_torch_fused"
    tf32: bool = False
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    ema_decay: float | None = None
    diagnose: bool = True
    parallel: Literal["ddp", "fsdp"] = "ddp"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    add_tokens: tuple[str, ...] = ()

    MOVED_KEYS: ClassVar[dict[str, tuple[str, str]]] = {
        "files": ("data", "files"),
        **{f"evaluation.{name}": (f"data.evaluation.{name}", "") for name in _SIZES_OF_0_1},
    }

    def __post_init__(self) -> None:
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must lie between 0 and 1 (0.999, say); leave it out to keep no average")
        later = [stage.name for stage in self.stages if stage.structure is not None]
        if self.quantize_frozen and later:
            raise ValueError(
                f"quantize_frozen={self.quantize_frozen}: stage {later[0]!r} changes the structure, which needs the weights in "
                "full. Leave quantize_frozen out, or give the structure to the run"
            )
        self._check_steps()
        for name in self.report_to:
            if name not in plugins.TRACKERS and not re.fullmatch(r"[\w.]+:\w+", name):
                known = ", ".join(map(repr, plugins.TRACKERS))
                raise ValueError(f"report_to names {name!r}; there are {known}, and trackers of your own as 'package.module:Class'")
        bounds.at_least(0, self, "seed", "save_steps", "save_total_limit", "weight_decay")
        bounds.at_least(0, self, "early_stopping_threshold", "extended_from")
        bounds.at_least(1, self, "logging_steps", "gradient_accumulation_steps", "early_stopping_patience")
        selects = self.load_best_model_at_end or self.early_stopping_patience is not None
        if selects and not self.evaluation.eval_steps:
            raise ValueError("early stopping and load_best_model_at_end need validation scores: set evaluation.eval_steps above 0")
        if not self.max_grad_norm > 0:  # infinite is no clipping
            raise ValueError(f"max_grad_norm={self.max_grad_norm} must be above 0")
        if self.max_steps and not sum(stage.share for stage in self.stages):
            raise ValueError(f"no stage takes a share of max_steps={self.max_steps}: give at least one, and a share above 0")

    def _check_steps(self) -> None:
        if self.num_train_epochs is not None and not 0 < self.num_train_epochs < math.inf:
            raise ValueError(f"num_train_epochs={self.num_train_epochs} must be above 0; leave it out to count by max_steps")
        if self.max_steps == -1 and self.num_train_epochs is None:
            raise ValueError("max_steps=-1 counts by num_train_epochs, which is not given: give one of them")
        if self.max_steps != -1:
            bounds.at_least(0, self, "max_steps")

    @classmethod
    def migrate_keys(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """``values`` of a recipe of version 0.1, where ``data`` had no kind and described the synthetic benchmark.

        Returns:
            The values, and what each key is called now.
        """
        data = values.get("data", {})
        if not isinstance(data, Mapping):
            return dict(values), {}
        if data.get("kind") == "files":  # saved runs of 0.1 have the other kind's defaults, too
            others = {key for key, value in _DATA_OF_0_1.items() if data.get(key) == value} | {"evaluation"}
            return {**values, "data": {key: value for key, value in data.items() if key not in others}}, {}
        if "kind" in data or "sources" in data:
            return dict(values), {}
        old = "data" if "data" in values else "data left out"
        return {**values, "data": {"kind": "world", **data}}, {old: "data: {kind: world, …}"}

    def check_sharding(self, processes: int) -> None:
        """Refuse what cannot be sharded over several ``processes``.

        Raises:
            ValueError: frozen weights or optimizer states are to be compressed, and FSDP2 shards float tensors alone.
        """
        for key, value in (("quantize_frozen", self.quantize_frozen), ("optim", self.optim == "adamw_8bit" and self.optim)):
            if value and self.parallel == "fsdp" and processes > 1:
                raise ValueError(f"{key}={value} does not work with parallel=fsdp, which shards float weights: use parallel=ddp")

    def num_microbatches(self, processes: int) -> int:
        """Parts that a step is cut into: ``gradient_accumulation_steps`` for each of ``processes``.

        Raises:
            ValueError: some would be without a sample of every task.
        """
        parts, most = processes * self.gradient_accumulation_steps, self.data.max_parts
        if parts > most:
            raise ValueError(
                f"a step in {parts} parts ({processes} processes x gradient_accumulation_steps={self.gradient_accumulation_steps}) "
                f"leaves some without a sample of every task, since the smallest batch size is {most}. Raise mmu_batch_size, "
                "t2i_batch_size and router_aux_samples, or use fewer parts"
            )
        return parts
