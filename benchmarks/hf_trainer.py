"""LoRA steps on understanding data: ours beside Hugging Face's Trainer with PEFT on transformers' Janus, same weights and batch.

Shapes keep Janus-Pro-1B's proportions at an eighth of its width: images of 576 tokens, a vocabulary 50 times the hidden size.
transformers' Janus has no loss for image generation, so there is nothing to compare with in that task.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import JanusForConditionalGeneration, Trainer, TrainerCallback, TrainingArguments

from benchmarks.record import Result, Row
from benchmarks.timing import Ratio, SidesDifferError, one_thread
from benchmarks.tiny import model_of, processor_of, samples
from unidecouple.adapters.peft_form import lora_config, to_peft
from unidecouple.batch import Batch, JointBatch, Task
from unidecouple.convert.convert import convert
from unidecouple.convert.steps import Conversion
from unidecouple.data.packing import pack
from unidecouple.data.sequences import Sample, SequenceBuilder, collate
from unidecouple.methods.objective import Objective
from unidecouple.methods.stage import Lora
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.processing import UniJanusProcessor
from unidecouple.models.tiny import TinySize
from unidecouple.train.step import StepSettings, train_step
from unidecouple.train.trainable import make_param_groups

SIZE = TinySize(
    hidden_size=256,
    num_hidden_layers=6,
    num_attention_heads=4,
    intermediate_size=704,
    vision_hidden_size=128,
    vision_layers=6,
    image_size=384,
    codes=64,
    vq_latent_channels=32,
    vq_channel_multiplier=(1, 1, 1, 1, 1),
)
VOCABULARY, LONGEST = 12_800, 4_096
LEARNING_RATE = 1e-3
LORA = Lora(16, 32.0, ("attention", "mlp"))
GOAL, WARMUP = 1.5, 2
TOLERANCE = 1e-4


@dataclass
class Steps:
    """Losses and CPU seconds of one side's steps, in order."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class Ours:
    """Our step on a model of its own."""

    def __init__(self, model: UniJanusForConditionalGeneration, joint: JointBatch) -> None:
        self.model, self.joint, self.steps = model.train(), joint, Steps()
        groups = make_param_groups(model, {"lora": 1.0}, LEARNING_RATE)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        self.settings = StepSettings(Objective(), (Task.MMU,))

    def step(self) -> None:
        """Take one step and note it."""
        start = time.process_time()
        taken = train_step(self.model, self.optimizer, [self.joint], self.settings)
        self.steps.seconds.append(time.process_time() - start)
        self.steps.losses.append(taken.losses["mmu"])


class Theirs(TrainerCallback):
    """Times the Trainer's steps; after each, ``between`` runs untimed, so that all sides take turns."""

    def __init__(self, between: list[Ours]) -> None:
        self.steps, self.between, self._start = Steps(), between, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See ``TrainerCallback``."""
        self._start = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See ``TrainerCallback``."""
        self.steps.seconds.append(time.process_time() - self._start)
        for side in self.between:
            side.step()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """See ``TrainerCallback``."""
        if logs and "loss" in logs:
            self.steps.losses.append(logs["loss"])


def with_updates(processor: UniJanusProcessor, size: TinySize, start: dict[str, Tensor]) -> UniJanusForConditionalGeneration:
    """Our model with the weights ``start`` and low-rank updates: A random, B zero."""
    model = model_of(processor, size, vocab_size=VOCABULARY, max_position_embeddings=LONGEST, **LORA.configure())
    missing = model.load_state_dict(start, strict=False).missing_keys
    assert all("lora_" in name for name in missing), missing
    return model


def their_model(folder: Path, ours: UniJanusForConditionalGeneration) -> PeftModel:
    """PEFT's wrapper of transformers' Janus in ``folder``, its adapter with our updates' values."""
    fields = lora_config(ours.config.text_config, []) | {"inference_mode": False}
    wrapped = get_peft_model(JanusForConditionalGeneration.from_pretrained(folder), LoraConfig(**fields))
    updates = to_peft({name: weight.detach() for name, weight in ours.named_parameters() if "lora_" in name})
    own = dict(wrapped.named_parameters())
    for name, value in updates.items():
        own[name.replace(".weight", ".default.weight")].data.copy_(value)
    return wrapped


def run_trainer(model: PeftModel, batch: dict[str, Tensor], steps: int, between: list[Ours], folder: Path) -> Steps:
    """``steps`` of the Trainer on ``batch``, the other sides' steps in between."""
    watch = Theirs(between)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_beta2=0.99,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
    )
    trainer = Trainer(model, arguments, train_dataset=[batch] * steps, data_collator=lambda rows: rows[0], callbacks=[watch])
    trainer.train()
    return watch.steps


def their_batch(batch: Batch) -> dict[str, Tensor]:
    """A padded batch as transformers' Janus takes it."""
    assert batch.pixel_values is not None
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "labels": batch.labels,
        "pixel_values": batch.pixel_values,
    }


def check_losses(name: str, found: list[float], wanted: list[float]) -> None:
    """Refuse losses of side ``name`` that are not the Trainer's, step by step.

    Raises:
        SidesDifferError: one differs by more than ``TOLERANCE``, relatively.
    """
    for place, (theirs, ours) in enumerate(zip(wanted, found, strict=True), start=1):
        if not abs(ours - theirs) <= TOLERANCE * abs(theirs):
            raise SidesDifferError(f"{name}: the loss of step {place} is {ours}, the Trainer's {theirs}")


def run(size: TinySize = SIZE, count: int = 4, repeats: int = 9, seed: int = 0) -> Result:
    """Compare losses step by step, and time.

    Raises:
        SidesDifferError: see ``check_losses``.
    """
    one_thread()
    torch.manual_seed(seed)
    processor = processor_of(size)
    builder, pad = SequenceBuilder(processor), processor.tokenizer.pad_token_id
    drawn: list[Sample] = samples(builder, size, (count, 0, 0), seed)
    padded, packed = collate(drawn, pad), pack(drawn, LONGEST, pad)
    base = model_of(processor, size, vocab_size=VOCABULARY, max_position_embeddings=LONGEST)
    first = with_updates(processor, size, base.state_dict())
    second = with_updates(processor, size, base.state_dict())
    second.load_state_dict(first.state_dict())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base.save_pretrained(folder / "base")
        processor.save_pretrained(folder / "base")
        convert(folder / "base", folder / "published", Conversion(to="transformers"), lambda line: None)
        sides = {"ours, padded": Ours(first, (padded,)), "ours, packed": Ours(second, (packed,))}
        theirs = run_trainer(
            their_model(folder / "published", first), their_batch(padded), repeats + WARMUP, list(sides.values()), folder
        )
    for name, side in sides.items():
        check_losses(name, side.steps.losses, theirs.losses)
    rows = []
    for name, side in sides.items():
        ratio = Ratio.of(theirs.seconds[WARMUP:], side.steps.seconds[WARMUP:])
        what, goal, met = f"Trainer + PEFT / {name}", f"at least {GOAL}", ratio.median >= GOAL
        rows.append(Row(what, ratio.median, "x", ratio.low, ratio.high, goal, met))
    details = {
        "losses": {"Trainer + PEFT": theirs.losses} | {name: side.steps.losses for name, side in sides.items()},
        "seconds": {"Trainer + PEFT": theirs.seconds} | {name: side.steps.seconds for name, side in sides.items()},
        "lengths": [len(sample.input_ids) for sample in drawn],
    }
    settings = {"samples": count, "vocabulary": VOCABULARY, "rank": LORA.r, "repeats": repeats, "seed": seed}
    return Result("hf_trainer", "LoRA steps on understanding data (other / ours; more is better)", settings, rows, details)


if __name__ == "__main__":
    result = run()
    print(f"{result.table()}\n{result.write()}")
