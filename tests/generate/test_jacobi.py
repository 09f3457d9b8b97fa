"""Several tokens a pass: the tokens of drawing one by one, in at most as many passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from decoder_kinds import KINDS
from unidecouple.convert.load import load
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.generate.drawing import ImageJob
from unidecouple.generate.image import Sampling, draw_tokens
from unidecouple.generate.jacobi import JacobiDrawing
from unidecouple.generate.sampler import Choice
from unidecouple.models.janus import UniJanusForConditionalGeneration

MakeModel = Callable[..., UniJanusForConditionalGeneration]
PROMPT = "a photo of a red cow"


@pytest.mark.parametrize(("guidance", "temperature"), [(1.0, 1.0), (3.0, 0.7)])
@pytest.mark.parametrize("kind", [KINDS[n] for n in (0, 4, 5, 7, 9, 11)], ids=str)
def test_the_same_tokens(
    make_model: MakeModel, builder: SequenceBuilder, kind: dict[str, Any], guidance: float, temperature: float
) -> None:
    model = make_model(**kind)
    expected = draw_tokens(model, builder, [PROMPT], 1, 4, Sampling(guidance, temperature, routing="label"))[0]
    for window in (1, 5, 40):
        drawn = JacobiDrawing(model, builder, window).draw(ImageJob(PROMPT, (4, 0, 0), guidance, Choice(temperature)))
        assert torch.equal(drawn.tokens, expected), window
        assert drawn.passes == 15 if window == 1 else drawn.passes <= 15


def test_guesses_that_are_right_save_passes(make_model: MakeModel, builder: SequenceBuilder) -> None:
    """Nothing depends on what stands before: the first guesses are all right."""
    model = make_model()
    for weight in model.model.generation_head.parameters():
        weight.data.zero_()
    drawn = JacobiDrawing(model, builder, 5).draw(ImageJob(PROMPT, (0,), 1.0))
    assert drawn.passes == 3  # 15 tokens after the first, five a pass


def test_the_distribution_is_the_models(make_model: MakeModel, builder: SequenceBuilder) -> None:
    """Second tokens of 150 seeds, given the first, against the model's own probabilities, by chi-square."""
    model = make_model()
    drawing = JacobiDrawing(model, builder, 4)
    pairs = torch.stack([drawing.draw(ImageJob(PROMPT, (seed,), 1.0, Choice(0.5, top_k=2))).tokens[:2] for seed in range(150)])
    start = int(pairs[:, 0].mode().values)
    second = pairs[pairs[:, 0] == start, 1]
    ids = torch.tensor([builder.generation_prompt(PROMPT)])
    with torch.no_grad():
        embeds = torch.cat([model.get_input_embeddings()(ids), model.embed_image_tokens(torch.tensor([[start]]))], 1)
        logits = model.image_logits(model.decoder(inputs_embeds=embeds).last_hidden_state[0, -1]) / 0.5
    best = logits.topk(2)
    share = best.values.double().softmax(-1).numpy()
    seen = torch.stack([(second == token).sum() for token in best.indices]).numpy()
    assert seen.sum() == len(second) > 70
    assert chisquare(seen, share * len(second)).pvalue > 1e-3


def test_refusals(make_model: MakeModel, builder: SequenceBuilder, emu3_base: Path) -> None:
    with pytest.raises(ValueError, match="window=0"):
        JacobiDrawing(make_model(), builder, 0)
    model, processor = load(str(emu3_base))
    with pytest.raises(ValueError, match="rows of tokens that end in text"):
        JacobiDrawing(model, SequenceBuilder(processor))
