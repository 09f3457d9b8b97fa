"""Where each token of one request goes, layer by layer, and how much each layer looks at the other modality."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unidecouple.batch import Batch
from unidecouple.models.base import UnifiedModel
from unidecouple.models.groups import GROUP_NAMES, token_groups
from unidecouple.models.interaction import intensities
from unidecouple.models.router import Routing


@dataclass(frozen=True)
class LayerRoute:
    """One layer's decisions on T tokens.

    Attributes:
        layer: of the decoder.
        group: (T,) int64 group that served each token.
        expert: (T,) int64, the likeliest expert inside it, numbered over all groups; None where a group has one set of weights.
        probability: (T,) float32 from 0 to 1, the router's of that expert among its group's; None where ``expert`` is.
        sure: (T,) float32, the task router's probability of the group it was asked to choose; None where group ids are given.
    """

    layer: int
    group: Tensor
    expert: Tensor | None = None
    probability: Tensor | None = None
    sure: Tensor | None = None


@dataclass(frozen=True)
class RequestView:
    """What ``view_request`` sees.

    Attributes:
        groups: their names, in order; ("all",) where there is one.
        label: (T,) int64 group by each token's label; None where there is one group.
        modality: (T,) int64 ``Modality`` of each token.
        learned: one entry per layer with routing, as the model decides; empty for a dense model.
        labelled: the same by label; None where the model has no task router, so that there is only one way to go.
        interaction: (layers,) float32 of the decoder, the share of attention given to the other modality; None where the
            request shows only one.
    """

    groups: tuple[str, ...]
    label: Tensor | None
    modality: Tensor
    learned: tuple[LayerRoute, ...]
    labelled: tuple[LayerRoute, ...] | None
    interaction: Tensor | None


@torch.no_grad()
def view_request(model: UnifiedModel, batch: Batch) -> RequestView:
    """Look at one request, its answer or its image included: a pass by the learned routers, and one by label.

    The interaction is AIA's (arXiv 2511.22663, eq. 1; ``models/interaction.py``): what the answer gives to the image, or
    the drawn tokens to the prompt. It is taken from the pass that the model's configuration would make.

    Raises:
        ValueError: ``batch`` has several rows.
    """
    if len(batch.input_ids) != 1:
        raise ValueError(f"{len(batch.input_ids)} rows: a request is one")
    config, modality = model.config.text_config, model.modality_ids(batch.input_ids, batch.embedded_image_tokens)
    parted = config.num_groups > 1 or config.per_group_layers is not None
    label = token_groups(config.group_by, batch.task_ids[0], modality[0]) if parted else None
    spans = model.spans(batch)
    mine = spans.task == batch.task_ids[0, -1]  # an image asked for by an image counts as both tasks' sample
    ways = ("learned", "label") if config.ffn == "ta_moe" else (config.task_routing,)  # others have one way to go
    routes, shares = {}, torch.empty(0, 0)
    for way in ways:
        decoded = model.decode_batch(batch, way, key_sets=spans.keys)
        routes[way] = _routes(model, decoded.routing or (), label)
        if way == config.task_routing:
            shares = intensities(decoded.key_set_shares or (), spans).intensity[:, mine]
    return RequestView(
        groups=GROUP_NAMES[config.group_by] if parted else ("all",),
        label=label,
        modality=modality[0],
        learned=routes[ways[0]],
        labelled=routes["label"] if len(ways) > 1 else None,
        interaction=shares[:, 0] if shares.shape[1] else None,
    )


def _routes(model: UnifiedModel, decided: tuple[Routing, ...], label: Tensor | None) -> tuple[LayerRoute, ...]:
    """Entries of all mixtures and untied layers, in their order."""
    config, mixtures, found = model.config.text_config, iter(decided), []
    for number in range(config.num_hidden_layers):
        if number in config.mixture_layers:
            found.append(_of_mixture(number, next(mixtures)))
        elif label is not None and config.num_weight_sets(number) > 1:
            found.append(LayerRoute(number, label))
    return tuple(found)


def _of_mixture(number: int, routing: Routing) -> LayerRoute:
    first = torch.tensor([span.start for span in routing.expert_ranges], device=routing.group.device)
    expert = routing.expert[:, 0]  # in falling order of probability
    inside = (expert - first[routing.group]).unsqueeze(-1)
    sure = None if routing.task_logits is None else routing.task_logits.softmax(-1).amax(-1)
    return LayerRoute(number, routing.group, expert, routing.expert_probs.gather(-1, inside).squeeze(-1), sure)
