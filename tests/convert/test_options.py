"""Options of the command line as what they mean."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from unidecouple.convert.options import depth, numbers, shard_bytes, structure
from unidecouple.methods.structure import Dense, MoE, MoT, Rosetta, TaskAwareMoE, UniFork, UniX

NOTHING = dict.fromkeys(
    [
        *(
            "structure",
            "experts_per_group",
            "num_experts",
            "num_experts_per_tok",
            "shared_expert",
            "shared_expert_per_task",
            "alpha_init",
            "moe_layers",
            "context_router",
        ),
        *("group_by", "parts", "fork", "first", "last", "across"),
    ]
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"structure": "dense"}, Dense()),
        ({"structure": "moe", "alpha_init": 0.25, "shared_expert": False}, MoE(alpha_init=0.25, shared_expert=False)),
        (
            {"structure": "ta_moe", "moe_layers": "0,2-3", "experts_per_group": 4},
            TaskAwareMoE(experts_per_group=4, moe_layers=(0, 2, 3)),
        ),
        ({"structure": "ta_moe", "context_router": True}, TaskAwareMoE(context_router=True)),
        ({"structure": "rosetta", "num_experts_per_tok": 1}, Rosetta(num_experts_per_tok=1)),
        ({"structure": "mot"}, MoT()),
        ({"structure": "mot", "group_by": "image_out"}, MoT(group_by="image_out")),
        ({"structure": "unifork", "fork": "3"}, UniFork(fork=3)),
        ({"structure": "unix", "first": "0.25", "last": ".5", "across": True}, UniX(first=0.25, last=0.5, across=True)),
    ],
)
def test_structures(given: dict[str, Any], expected: object) -> None:
    assert structure(argparse.Namespace(**NOTHING | given)) == expected


def test_layers_and_sizes() -> None:
    assert numbers("0,4-7") == (0, 4, 5, 6, 7)
    assert [shard_bytes(text) for text in ("5GB", "200 mb", "1000", "0.5KB")] == [5 * 10**9, 200 * 10**6, 1000, 500]
    for wrong in ("", "1,", "a", "3-"):
        with pytest.raises(ValueError, match="is not a list of layers"):
            numbers(wrong)
    assert (depth("12"), depth("0.5"), depth(".25")) == (12, 0.5, 0.25)
    for wrong in ("", "-1", "1.5", "half"):
        with pytest.raises(ValueError, match="is not a depth"):
            depth(wrong)
    for wrong in ("", "big", "0", "-1GB"):
        with pytest.raises(ValueError, match="is not a file size"):
            shard_bytes(wrong)


@pytest.mark.parametrize(("given", "said"), [({"structure": "moe", "group_by": "task"}, "--group-by"), ({"fork": "2"}, "--fork")])
def test_options_without_use_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"{said} has no effect with --structure"):
        structure(argparse.Namespace(**NOTHING | given))
