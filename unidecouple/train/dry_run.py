"""Dry run: print the resolved configuration, the trained weights and one decoded batch of each task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unidecouple import config as configs
from unidecouple.batch import Batch
from unidecouple.data.preview import token_spans
from unidecouple.data.sequences import Sample, SequenceBuilder
from unidecouple.run import RunConfig
from unidecouple.source import PrintLine, data_source
from unidecouple.train.build import add_lora, apply_structure, load_with_tokens
from unidecouple.train.gradients import Gradients
from unidecouple.train.lr_scaling import scaled_rows
from unidecouple.train.parallel import Parallel
from unidecouple.train.trainable import check_shield, make_param_groups, table

_SHOWN = 2


def describe(run: RunConfig, cache: Path, say: PrintLine) -> None:
    """Print what ``run`` would do; writes nothing but indices and encoded images into ``cache``.

    Raises:
        ValueError: as the run itself would: a start that does not load, a pattern that matches nothing, data that is missing.
    """
    say(configs.dump(run).rstrip())
    model, processor = load_with_tokens(run.model_name_or_path, run.add_tokens)
    builder = SequenceBuilder(processor)
    source = data_source(run).open(run, model, processor, builder, cache, lambda what, done, of: None)
    model = apply_structure(model, run.structure, run.seed, source)
    for number, stage in enumerate(run.stages, 1):
        if stage.structure is not None:
            model = apply_structure(model, stage.structure, run.seed, source)
        if stage.lora is not None:
            model = add_lora(model, stage.lora, run.seed)
        groups = make_param_groups(model, stage.train, stage.learning_rate)
        Gradients.of(model, stage.gradient, Parallel(), scaled_rows(model, stage.group_lr_scale))  # raises as the run would
        check_shield(model, stage)
        stage.of(source.tasks)
        if not groups:
            say(f"warning: stage {stage.name!r} trains nothing; name parts in its train, as train: {{attention: 1, ffn: 1}}")
        say(f"\nstage {number}/{len(run.stages)} {stage.name!r}\n{table(model, groups, stage.group_lr_scale)}")
    for batch in source.batch(0):
        rows, length = batch.input_ids.shape
        filled = batch.num_tokens / batch.input_ids.numel()
        tasks = " and ".join(
            f"{count} {name} targets" for name, count in zip(("text", "image token"), batch.num_targets, strict=True)
        )
        say(f"\nmicro-batch of step 1: {rows} rows of {length} tokens, {filled:.0%} filled, {tasks}; [[...]] has a loss")
        for row in range(min(_SHOWN, rows)):
            say("  " + _decoded(batch, row, builder))


def _decoded(batch: Batch, row: int, builder: SequenceBuilder) -> str:
    """One row as text, from what the model gets."""
    keep = batch.attention_mask[row]
    ids, tasks, labels, codes = (
        column[row][keep].tolist() for column in (batch.input_ids, batch.task_ids, batch.labels, batch.image_tokens)
    )
    sources = (batch.embedded_image_tokens != batch.image_tokens)[row][keep].tolist()
    sample = replace(Sample.of_tokens(ids, tasks, labels, codes), source_mask=sources)
    marks = {"loss": "[[{}]]", "context": "{}", "image_in": "<{} tokens of an image>", "image_out": "[[{} image tokens]]"}
    return " ".join(marks[part.look].format(part.text or part.count) for part in token_spans(sample, builder))
