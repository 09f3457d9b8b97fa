"""A warning during training when routing goes wrong: experts that die or never live, routers that lose what they had learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

SPARSE, UNIFORM = 0.5, 0.9
"""Entropy of a router's probabilities, as a share of its maximum: at most ``SPARSE`` it decides, from ``UNIFORM`` on it guesses."""
SPREAD, GATHERED = 0.5, 0.1
"""Entropy of the load: from ``SPREAD`` on experts share a task's tokens, at most at ``GATHERED`` one has nearly all."""
RECORDS = 5
"""Records in a row after which a bad state is no passing one: in 21 runs of scenario S1 with a record every 50 steps, of 25 experts
that were dead in the first record 16 had tokens within four more, 7 later, after up to 14, and 2 never."""

_MEANS = {
    "uniform": "routing went from sparse to near uniform (what the experts had specialised in is being lost)",
    "gathered": "nearly all tokens now go to one expert of their group",
    "dead": "experts that had tokens get almost none any more",
    "still gathered": f"nearly all tokens have gone to one expert of their group in {RECORDS} records",
    "still dead": f"experts have had almost no token in {RECORDS} records",
}


class RoutingAlarm:
    """Watches the rows of ``routing_rows`` over steps and says each trouble of a layer once.

    - *Routing collapse* (Symbiotic-MoE, arXiv 2604.07753): ``token_entropy`` was at most ``SPARSE`` before and is at least
      ``UNIFORM`` now. New routers start near uniform, so that alone is no trouble.
    - *Gathering*, its reverse: ``load_entropy`` was at least ``SPREAD`` and is at most ``GATHERED`` now.
    - *Dead experts*: an expert is dead (see ``routing.DEAD``) that was not in an earlier record.
    - *Both from the start*: what was never better, ``RECORDS`` records in a row.

    The thresholds are ours.
    """

    def __init__(self) -> None:
        self._least: dict[tuple[int, str], float] = {}
        self._most: dict[tuple[int, str], float] = {}
        self._alive: set[tuple[int, int]] = set()
        self._said: set[tuple[str, int, str]] = set()
        self._in_a_row: Counter[tuple[str, int, str]] = Counter()

    def observe(self, rows: Sequence[Mapping[str, Any]]) -> str | None:
        """Return a warning about the newest ``rows``, or None."""
        troubles = [trouble for row in rows for trouble in self._troubles(row) if trouble not in self._said]
        self._said.update(troubles)
        for row in rows:
            self._remember(row)
        if not troubles:
            return None
        problems = []
        for kind, meaning in _MEANS.items():
            places = [f"layer {layer} {what}" for found, layer, what in troubles if found == kind]
            problems += [f"{meaning}: {', '.join(places)}"] if places else []
        return f"warning: {'; '.join(problems)}. Lower the rate of expert_router, or raise the coeff of the load_balance loss"

    def _troubles(self, row: Mapping[str, Any]) -> list[tuple[str, int, str]]:
        layer = row["layer"]
        found: list[tuple[str, int, str]] = []
        still: list[tuple[str, int, str]] = []  # bad as ever: no trouble before some records
        for task, entropy in row["token_entropy"].items():
            if entropy is not None and entropy >= UNIFORM and self._least.get((layer, task), 1.0) <= SPARSE:
                found.append(("uniform", layer, task))
        for task, entropy in row["load_entropy"].items():
            if entropy is not None and entropy <= GATHERED:
                spread_before = self._most.get((layer, task), 0.0) >= SPREAD
                (found if spread_before else still).append(("gathered" if spread_before else "still gathered", layer, task))
        for expert in row["dead"]:
            lived = (layer, expert) in self._alive
            (found if lived else still).append(("dead" if lived else "still dead", layer, f"e{expert}"))
        self._in_a_row = Counter({place: count for place, count in self._in_a_row.items() if place[1] != layer or place in still})
        self._in_a_row.update(still)
        return found + [place for place in still if self._in_a_row[place] >= RECORDS]

    def _remember(self, row: Mapping[str, Any]) -> None:
        layer = row["layer"]
        for task, entropy in row["token_entropy"].items():
            if entropy is not None:
                self._least[layer, task] = min(entropy, self._least.get((layer, task), 1.0))
        for task, entropy in row["load_entropy"].items():
            if entropy is not None:
                self._most[layer, task] = max(entropy, self._most.get((layer, task), 0.0))
        shares = row["expert_share"].values()
        experts = len(next(iter(shares), ()))
        had_tokens = {expert for expert in range(experts) if any(share[expert] > 0 for share in shares)}
        self._alive |= {(layer, expert) for expert in had_tokens - set(row["dead"])}
