"""The diagnoses of a checkpoint: what is measured, how it is drawn, and how to read it. A new one is one entry here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unidecouple.report.figures_checkpoint import ablation_map, alignment_curves
from unidecouple.report.figures_diagnosis import color_limit, conflict_map, ratio_map, routing_map
from unidecouple.report.figures_interaction import interaction_figure
from unidecouple.report.figures_routing import routing_history
from unidecouple.report.logs import conflict_of, interaction_of, routing_of
from unidecouple.report.style import Plot, variant_styles
from unidecouple.train.measurements import (
    Measured,
    Progress,
    measure_ablations,
    measure_alignment,
    measure_conflict,
    measure_interaction,
    measure_routing,
    measure_routing_history,
)
from unidecouple.train.subject import ProbeInput

Drawn = list[tuple[str, Plot | None]]
"""(heading, figure) pairs; a figure that needs more than was measured is None."""


@dataclass(frozen=True)
class Probe:
    """One diagnosis.

    Attributes:
        name: key in ``diagnosis.json``.
        title: heading on the page.
        measure: a JSON object, or why there is none.
        draw: figures of that object.
        read: how to read them.
        worry: what in them would be bad news, and what then helps.
        source: paper.
    """

    name: str
    title: str
    measure: Callable[[ProbeInput, Progress], Measured]
    draw: Callable[[Any], Drawn]
    read: str
    worry: str
    source: str


def _conflict(measured: Any) -> Drawn:
    conflict = conflict_of(measured)
    title = "Gradient conflict"
    return [
        ("Direction", conflict_map("conflict", title, [conflict], color_limit([conflict]))),
        ("Size", ratio_map("ratio", title, conflict)),
    ]


def _routing(measured: Any) -> Drawn:
    look = variant_styles(["checkpoint"], str, role=lambda _: "focus")["checkpoint"]
    return [("", routing_map("routing", "Routing", routing_of(measured), look))]


def _history(measured: Any) -> Drawn:
    return [("", routing_history("history", "Training", measured["records"]))]


def _interaction(measured: Any) -> Drawn:
    return [("", interaction_figure("interaction", "Interaction", [interaction_of(measured)]))]


def _alignment(measured: Any) -> Drawn:
    return [("", alignment_curves("alignment", measured["tasks"]))]


def _ablation(measured: Any) -> Drawn:
    return [("", ablation_map("ablation", measured["costs"]))]


PROBES = (
    Probe(
        "conflict",
        "Do the tasks pull shared weights apart?",
        measure_conflict,
        _conflict,
        "The cosine of the tasks' gradients in every weight matrix that both use, beside the cosine of two batches of one task: "
        "even those do not agree fully, and conflict is what lies below that floor. The second map shows whose gradient is larger. "
        "Experts of one layer are one matrix here, all together; weights that are one task's own have no cell.",
        "Cells marked as told apart whose difference is red, above all where the cosine itself is below zero: a step for one task "
        "undoes the other's. Where one gradient is many times larger, it decides where shared weights go; then change mmu_coeff "
        "and t2i_coeff before anything else. In experts that both tasks may use, a cosine near zero may also mean that each has "
        "found experts of its own: see where tokens go.",
        "Uni-X, arXiv 2509.24365; UniDecouple, arXiv 2506.03591",
    ),
    Probe(
        "routing",
        "Where do tokens go?",
        measure_routing,
        _routing,
        "Each token is sent to a group of experts, then to experts in it, by the model's own routers, without being told the task.",
        "A task whose tokens go to the other's group, and experts with almost no tokens: they were paid for and do nothing.",
        "UniDecouple, arXiv 2506.03591",
    ),
    Probe(
        "routing_history",
        "How did routing change during training?",
        measure_routing_history,
        _history,
        "Thin lines are layers. Doubt is the entropy of a router's probabilities on one token, spread that of its choices over a "
        "task's tokens; 1 is the most there can be.",
        "Doubt that was low and rises towards 1: the routers lose what the experts had specialised in. Spread that falls to 0: one "
        "expert takes all. Dead experts that grow in number.",
        "Symbiotic-MoE, arXiv 2604.07753",
    ),
    Probe(
        "interaction",
        "Which layers look across?",
        measure_interaction,
        _interaction,
        "The share of attention that answers give to the picture, and drawn tokens to their prompt, layer by layer.",
        "Curves that oppose each other in layers that both tasks share: where one task wants its eyes on the other modality, the "
        "other does not. The AIA loss moves them towards those of models of one task.",
        "AIA, arXiv 2511.22663",
    ),
    Probe(
        "alignment",
        "Do pictures and words come to mean the same?",
        measure_alignment,
        _alignment,
        "The share of nearest neighbours that a picture and its words have in common, by depth: pictures as seen in understanding, "
        "as drawn in generation. At the dotted line the two sides know nothing of each other.",
        "Curves that want different things of the same layers: understanding's rising to the output while generation's falls, in "
        "layers that both tasks share. A curve at chance all the way: words and pictures never meet.",
        "Platonic representation, arXiv 2405.07987; UniFork, arXiv 2506.17202",
    ),
    Probe(
        "ablation",
        "What is each part worth?",
        measure_ablations,
        _ablation,
        "How much the held-out loss of each task rises when a part is taken away from the trained model: the shared expert; a "
        "group's experts, or its set of untied layers, whose tokens another group's then serve (of three, the one named after "
        "'by'); a single expert.",
        "A task's own group that costs it nothing to lose: the groups have not parted. A shared expert that is worth nothing. A "
        "part that costs the other task much: it is not as private as its name says.",
        "ours; what is removed is UniDecouple's, arXiv 2506.03591",
    ),
)
