"""One request's routes against the routers asked one by one, and its interaction against the joint batch's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from decoder_kinds import KINDS
from unidecouple.batch import Batch, Modality, Task
from unidecouple.data.sequences import SequenceBuilder, TurnPart, collate
from unidecouple.diagnose.one_request import view_request
from unidecouple.models.janus import UniJanusForConditionalGeneration

MakeModel = Callable[..., UniJanusForConditionalGeneration]


def asked(builder: SequenceBuilder, picture: np.ndarray, answer: str | None = "yes") -> Batch:
    turns: list[tuple[str, list[TurnPart]]] = [("user", [picture, "Is there a cow in the image?"])]
    turns += [("assistant", [answer])] if answer else []
    return collate([builder.conversation(turns, Task.MMU)], 0)


def drawn(builder: SequenceBuilder) -> Batch:
    codes = tuple(range(builder.num_image_tokens))
    return collate([builder.conversation([("user", ["a red cow"]), ("assistant", [codes])], Task.T2I)], 0)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_every_decoder_shows(
    kind: dict[str, object], make_model: MakeModel, builder: SequenceBuilder, pictures: np.ndarray
) -> None:
    model = make_model(**kind)
    config = model.config.text_config
    for batch in (asked(builder, pictures[0]), drawn(builder)):
        view = view_request(model, batch)
        length = batch.input_ids.shape[1]
        layers = sorted({*config.mixture_layers, *(config.per_group_layers or ())})
        assert [route.layer for route in view.learned] == layers
        assert (view.labelled is not None) == (config.ffn == "ta_moe")
        assert view.modality.shape == (length,)
        for route in (*view.learned, *(view.labelled or ())):
            assert route.group.shape == (length,)
            assert int(route.group.max()) < len(view.groups)
            if route.expert is not None and route.probability is not None:
                starts = torch.tensor([0, *config.expert_groups]).cumsum(0)
                assert ((route.expert >= starts[route.group]) & (route.expert < starts[route.group + 1])).all()
                assert ((route.probability > 0) & (route.probability <= 1)).all()
        for route in view.labelled or ():
            assert torch.equal(route.group, batch.task_ids[0])
        expected = model(batch=(batch,), interaction=True).interaction[0].intensity[:, 0]
        assert view.interaction is not None
        torch.testing.assert_close(view.interaction, expected)


def test_probabilities_are_the_routers(make_model: MakeModel, builder: SequenceBuilder, pictures: np.ndarray) -> None:
    """Layer 0's two routers, asked by hand about its own input."""
    model = make_model(ffn="ta_moe", num_experts=6)
    batch = asked(builder, pictures[0])
    kept = []
    handle = model.decoder.layers[0].mlp.register_forward_hook(lambda module, args, out: kept.append(args[0][0]))
    first = view_request(model, batch).learned[0]
    handle.remove()
    moe = model.decoder.layers[0].mlp
    sure = (kept[0] @ moe.router.weight.T).softmax(-1)
    assert torch.equal(first.group, sure.argmax(-1))
    assert len(first.group.unique()) == 2, "a router that sends all to one group would show nothing"
    torch.testing.assert_close(first.sure, sure.amax(-1))
    for place, group in enumerate(first.group.tolist()):
        chosen = (moe.gate.weight[group].detach() @ kept[0][place]).softmax(-1)
        assert int(first.expert[place]) == 3 * group + int(chosen.argmax())
        assert float(first.probability[place]) == pytest.approx(float(chosen.max()), rel=1e-5)


def test_labels_and_modalities(make_model: MakeModel, builder: SequenceBuilder, pictures: np.ndarray) -> None:
    view = view_request(make_model(ffn="ta_moe"), drawn(builder))
    assert view.groups == ("mmu", "t2i")
    assert view.label is not None
    assert view.label.tolist() == [0] + [1] * (len(view.label) - 1), "the BOS says nothing of the task yet"
    assert (view.modality == Modality.IMAGE_OUT).sum() == builder.num_image_tokens
    typed = view_request(make_model(ffn="typed_moe", group_by="type", num_experts=6), asked(builder, pictures[0]))
    assert typed.groups == ("text", "image_in", "image_out")
    assert typed.label is not None
    assert torch.equal(typed.label, typed.modality)
    assert (typed.modality == Modality.IMAGE_IN).sum() == builder.seen_tokens
    dense = view_request(make_model(), drawn(builder))
    assert (dense.groups, dense.label, dense.learned, dense.labelled) == (("all",), None, (), None)


def test_without_an_answer_nothing_is_looked_at(make_model: MakeModel, builder: SequenceBuilder, pictures: np.ndarray) -> None:
    model = make_model(ffn="ta_moe")
    view = view_request(model, asked(builder, pictures[0], None))
    assert view.interaction is None
    assert len(view.learned) == 2
    two = collate([builder.conversation([("user", ["why?"])], Task.MMU)] * 2, 0)
    with pytest.raises(ValueError, match="2 rows"):
        view_request(model, two)
