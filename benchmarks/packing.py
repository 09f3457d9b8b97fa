"""C9: the share of useful tokens in packed rows and in padded batches of the same samples, and that both learn the same."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from benchmarks.record import Result, Row
from benchmarks.timing import SidesDifferError, one_thread
from benchmarks.tiny import MIXTURE, SIZE, model_of, processor_of, samples
from unidecouple.batch import NO_IMAGE_TOKEN, Batch, JointBatch
from unidecouple.data.packing import pack
from unidecouple.data.sequences import Sample, SequenceBuilder, collate
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.tiny import TinySize

GOAL = 0.98


def useful_share(joint: JointBatch) -> float:
    """Tokens that are not padding, of all tokens that are computed."""
    return sum(batch.num_tokens for batch in joint) / sum(batch.input_ids.numel() for batch in joint)


def by_task(mixed: Sequence[Sample], pad: int) -> JointBatch:
    """One padded batch a task, as a run without packing makes them."""
    drawn = [max(sample.image_tokens) != NO_IMAGE_TOKEN for sample in mixed]
    return tuple(collate([s for s, is_drawn in zip(mixed, drawn, strict=True) if is_drawn is kind], pad) for kind in (False, True))


def learned(model: UniJanusForConditionalGeneration, batch: Batch) -> dict[str, Tensor]:
    """Summed losses of both tasks, and all gradients of their sum."""
    model.zero_grad()
    output = model(batch=(batch,))
    (output.mmu.total + output.t2i.total).backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return {"loss/mmu": output.mmu.total.detach(), "loss/t2i": output.t2i.total.detach()} | gradients


def difference(model: UniJanusForConditionalGeneration, padded: Batch, packed: Batch, tolerance: float = 1e-5) -> float:
    """The largest difference that packing makes to losses (each relative to itself) and gradients (to the largest of all).

    Raises:
        SidesDifferError: it is above ``tolerance``.
    """
    wanted, found = learned(model, padded), learned(model, packed)
    if wanted.keys() != found.keys():
        raise SidesDifferError(f"packed and padded rows reach different weights: {sorted(wanted.keys() ^ found.keys())[:3]}")
    largest = max(float(value.abs().max()) for name, value in wanted.items() if not name.startswith("loss/"))
    worst = 0.0
    for name, value in wanted.items():
        scale = abs(float(value)) if name.startswith("loss/") else largest
        off = float((found[name] - value).abs().max()) / scale
        if not off <= tolerance:
            raise SidesDifferError(f"{name} of packed rows is off the padded ones' by {off:.1e}")
        worst = max(worst, off)
    return worst


def run(size: TinySize = SIZE, count: int = 320, row: int = 8192, seed: int = 0, compared: int = 10) -> Result:
    """Count, after losses and gradients were found equal on ``compared`` samples of the mixture.

    Raises:
        SidesDifferError: they are not.
    """
    one_thread()
    processor = processor_of(size)
    builder, pad = SequenceBuilder(processor), processor.tokenizer.pad_token_id
    tens = [count * part // sum(MIXTURE) for part in MIXTURE]
    few = samples(builder, size, [compared * part // sum(MIXTURE) for part in MIXTURE], seed + 1)
    off = difference(model_of(processor, size, ffn="ta_moe", task_routing="label"), collate(few, pad), pack(few, row, pad))
    mixed = samples(builder, size, tens, seed)
    shares = {
        "packed rows": useful_share((pack([replace(sample, pictures=()) for sample in mixed], row, pad),)),
        "one padded batch a task": useful_share(by_task([replace(sample, pictures=()) for sample in mixed], pad)),
        "one padded batch": useful_share((collate([replace(sample, pictures=()) for sample in mixed], pad),)),
    }
    rows = [Row(f"useful tokens, {name}", share, "of all") for name, share in shares.items()]
    rows[0] = replace(rows[0], goal=f"at least {GOAL}", met=shares["packed rows"] >= GOAL)
    rows.append(Row("largest relative difference of losses and gradients, x 1e6", off * 1e6, ""))
    settings = {"understanding : texts : generation": tens, "row": row, "tokens an image": size.num_image_tokens, "seed": seed}
    details = {"tokens": sum(len(sample.input_ids) for sample in mixed), "samples compared": compared, "difference": off}
    return Result("packing", "C9: useful tokens when packed (more is better)", settings, rows, details)


def command() -> None:
    """What ``python -m benchmarks.packing`` does."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing", description="C9: useful tokens when packed.")
    parser.add_argument("--samples", type=int, default=320, help="samples, a multiple of ten (default: 320)")
    parser.add_argument("--row", type=int, default=8192, help="most tokens of a row (default: 8192)")
    parser.add_argument("--seed", type=int, default=0, help="of the mixture (default: 0)")
    arguments = parser.parse_args()
    result = run(count=arguments.samples, row=arguments.row, seed=arguments.seed)
    print(f"{result.table()}\n{result.write()}")


if __name__ == "__main__":
    command()
