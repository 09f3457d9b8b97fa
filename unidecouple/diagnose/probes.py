"""The probes of a checkpoint, in the order of the page. A new one is a file with ``PROBE``, and a line here."""

from __future__ import annotations

from typing import Final

from unidecouple.diagnose import ablation, alignment, attention_interaction, gradient_conflict, routing, routing_history
from unidecouple.diagnose.probe import Probe

PROBES: Final[tuple[Probe, ...]] = (
    gradient_conflict.PROBE,
    routing.PROBE,
    routing_history.PROBE,
    attention_interaction.PROBE,
    alignment.PROBE,
    ablation.PROBE,
)
