"""docs/scale.md shows what the command prints. After a change, `python tests/plan/test_docs.py` writes the blocks anew."""

from __future__ import annotations

import bisect
import contextlib
import copy
import io
import re
from pathlib import Path

import pytest

from unidecouple import config
from unidecouple.cli import main
from unidecouple.plan.batch_shapes import Lengths, joint
from unidecouple.plan.devices import DEVICES, Hardware
from unidecouple.plan.estimate import MOST, StageWorkload
from unidecouple.plan.sizes import SIZES, build
from unidecouple.plan.stages import stage_load
from unidecouple.plan.strategies import Placement, memory
from unidecouple.run import RunConfig

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "scale.md"
BLOCK = re.compile(r"^    \$ unidecouple (?P<arguments>.*)\n(?P<output>(?:(?:    .*)?\n)*?)(?=\S|\Z)", flags=re.MULTILINE)
TABLE = re.compile(r"^\| decoder .*\n(?:\|.*\n)+", flags=re.MULTILINE)
SHAPES = {"13B": (40, 5120, 13824), "65B": (80, 8192, 22016), "130B": (72, 12288, 33024), "310B": (96, 16384, 44032)}


def printed(arguments: str) -> str:
    """What the command prints, indented as the document has it."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.chdir(ROOT):
        assert main(arguments.split()) == 0
    return "".join(f"    {line}".rstrip() + "\n" for line in out.getvalue().splitlines())


def fewest_of(load: StageWorkload, parts: int) -> int | None:
    """The fewest H100s that hold a stage, their step cut into ``parts`` over all."""
    room, trace = Hardware(DEVICES["h100"]).memory, load.trace("both", parts)

    def fits(gpus: int) -> bool:
        return memory(Placement("fsdp2", gpus, {"both": gpus}), load.weights, trace, checkpointing=True).total <= room

    found = bisect.bisect_left(range(1, MOST + 1), True, key=fits)  # each device more has less to hold
    return found + 1 if found < MOST else None


def largest() -> str:
    """The table of the largest runs."""
    run = config.load(RunConfig, [ROOT / "recipes" / "scale" / "janus_pro.yaml"])
    rows = ["| decoder | layers by width, FFN | parameters with experts | stage 1 | stage 2 |", "|---|---|---|---|---|"]
    for name, (layers, hidden, inner) in SHAPES.items():
        raw = copy.deepcopy(SIZES["janus-pro-1b"])
        heads = hidden // 128
        raw["text_config"] |= {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
        raw["text_config"] |= {"num_attention_heads": heads, "num_key_value_heads": heads}
        raw["vision_config"]["projection_dim"] = raw["vq_config"]["projection_dim"] = hidden
        raw["vq_config"]["image_token_embed_dim"] = hidden
        loads = []
        for stage in run.stages:
            model = build(raw, run.structure, stage.lora)
            loads.append(stage_load(model, stage, joint(run.data, name, model.config, Lengths()), width=2))
        fewest = [fewest_of(load, run.data.mmu_batch_size) or "none" for load in loads]
        billions = f"{loads[0].weights.total / 1e9:.0f} G"
        rows.append(f"| {name} | {layers} by {hidden:,}, {inner:,} | {billions} | {fewest[0]} | {fewest[1]} |")
    return "\n".join(rows) + "\n"


BLOCKS = list(BLOCK.finditer(DOCUMENT.read_text(encoding="utf-8")))


def test_both_sizes_are_documented() -> None:
    shown = [block["arguments"] for block in BLOCKS]
    assert len(shown) == 3
    assert sum("janus-pro-7b" in arguments for arguments in shown) == 1
    assert all("--gpus 64 256 1024" in shown[index] for index in (0, 2))


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block["arguments"])
def test_documented_tables_are_what_the_command_prints(block: re.Match[str]) -> None:
    assert block["output"].rstrip("\n") == printed(block["arguments"]).rstrip("\n")


@pytest.mark.slow
def test_the_largest_runs() -> None:
    assert largest() in DOCUMENT.read_text(encoding="utf-8")


if __name__ == "__main__":
    text = BLOCK.sub(
        lambda block: f"    $ unidecouple {block['arguments']}\n{printed(block['arguments'])}\n",
        DOCUMENT.read_text(encoding="utf-8"),
    )
    DOCUMENT.write_text(TABLE.sub(lambda _: largest(), text).rstrip("\n") + "\n", encoding="utf-8")
