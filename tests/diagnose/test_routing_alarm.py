"""When routing goes wrong, and when it does not."""

from __future__ import annotations

from typing import Any

import pytest

from unidecouple.diagnose.routing_alarm import RECORDS, RoutingAlarm


def row(token: float = 0.3, load: float = 0.8, dead: tuple[int, ...] = (), layer: int = 2) -> list[dict[str, Any]]:
    """One layer with four experts that all have had some token of understanding."""
    return [
        {
            "layer": layer,
            "expert_share": {"mmu": [0.24] * 3 + [0.28]},
            "token_entropy": {"mmu": token},
            "load_entropy": {"mmu": load},
            "dead": list(dead),
        }
    ]


def said(*records: list[dict[str, Any]]) -> list[str | None]:
    alarm = RoutingAlarm()
    return [alarm.observe(record) for record in records]


def test_collapse_to_uniform_is_said_once() -> None:
    first, warned, again = said(row(token=0.4), row(token=0.95), row(token=0.99))
    assert first is None
    assert warned is not None
    assert "near uniform" in warned
    assert "layer 2 mmu" in warned
    assert again is None


def test_one_expert_takes_all() -> None:
    warned = said(row(load=0.9), row(load=0.05))[1]
    assert warned is not None
    assert "one expert" in warned
    assert "uniform" not in warned


def test_experts_that_die_are_named() -> None:
    warned = said(row(), row(dead=(1, 3)))[1]
    assert warned is not None
    assert "layer 2 e1, layer 2 e3" in warned


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(dead=(1, 3)), f"experts have had almost no token in {RECORDS} records: layer 2 e1, layer 2 e3"),
        (row(load=0.05), f"have gone to one expert of their group in {RECORDS} records: layer 2 mmu"),
    ],
)
def test_what_was_never_better_is_said_once_it_is_no_start_any_more(bad: list[dict[str, Any]], message: str) -> None:
    *before, warned, again = said(*[bad] * (RECORDS + 1))
    assert before == [None] * (RECORDS - 1)
    assert warned is not None
    assert message in warned
    assert again is None
    assert said(*[bad] * (RECORDS - 1), row(), row()) == [None] * (RECORDS + 1), "it came to life in time"


def test_what_died_is_said_once_only() -> None:
    assert sum(warning is not None for warning in said(row(), *[row(load=0.05, dead=(1,))] * (RECORDS + 1))) == 1


@pytest.mark.parametrize(
    "records",
    [
        [row(token=0.99), row(token=0.3)],  # a new router is uniform and learns
        [row(token=0.99), row(token=0.99)],
        [row(token=0.6), row(token=0.95)],  # it never was sparse
        [row(load=0.05), row(load=0.05)],
        [row(dead=(1,)), row(dead=(1,))],  # it never lived
        [row(token=0.4, layer=0), row(token=0.95, layer=1)],
    ],
)
def test_no_trouble_no_warning(records: list[list[dict[str, Any]]]) -> None:
    assert said(*records) == [None] * len(records)
