"""The engine's two calls against the plain loops, and what it holds in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from decoder_kinds import KINDS
from unidecouple.batch import Task
from unidecouple.convert.load import load
from unidecouple.generate.engine import MISSING_GREY, Engine
from unidecouple.generate.image import decode_images, draw_tokens
from unidecouple.generate.jobs import ImageJob, image_jobs
from unidecouple.generate.one_task import load_one_task, one_task
from unidecouple.generate.sampling import SamplingParams
from unidecouple.generate.text import answer
from unidecouple.models.base import UnifiedModel
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.processing import UniJanusProcessor

MakeModel = Callable[..., UniJanusForConditionalGeneration]
PROMPTS = ["a photo of a cow", "a photo of a red cow and a blue pig"]
QUESTIONS = ["Is there a cow in the image?", "What?", "How many pigs?", "Is it red?"]


def size(model: torch.nn.Module) -> int:
    """Bytes of all memory that its parameters lie in, counted once."""
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    return sum(storages.values())


def test_lists_in_lists_out(make_model: MakeModel, processor: UniJanusProcessor, pictures: np.ndarray) -> None:
    model = make_model(ffn="ta_moe")
    engine = Engine(make_model(ffn="ta_moe"), processor, max_batch_size=3, max_prompt_length=40, max_length=96)
    sampling = SamplingParams(guidance_scale=3.0, temperature=0.8, top_k=20)
    jobs = image_jobs(engine.builder, PROMPTS, 2, 4, sampling)
    expected = decode_images(model, draw_tokens(model, engine.builder, jobs, routing="label"))
    found = engine.generate_images(PROMPTS, 2, 4, sampling)
    assert [len(row) for row in found] == [2, 2]
    assert [np.asarray(one).tolist() for row in found for one in row] == expected.tolist()
    wide = [Image.fromarray(picture) for picture in pictures]
    assert engine.understand(wide, QUESTIONS, 8) == answer(model, engine.builder, list(pictures), QUESTIONS, 8, routing="label")
    assert engine.understand([], []) == []
    alone = engine.generate_images(PROMPTS[0], 2, 4, sampling)  # one prompt, no list: its images
    assert [np.asarray(one).tolist() for one in alone] == expected[:2].tolist()
    assert engine.generate_images([], 2) == []
    assert engine.generate_images(PROMPTS, 0) == [[], []]
    with pytest.raises(ValueError, match="1 images for 4 questions"):
        engine.understand(wide[:1], QUESTIONS)


def test_a_growing_picture(make_model: MakeModel, processor: UniJanusProcessor) -> None:
    engine = Engine(make_model(), processor, max_prompt_length=40)
    [picture] = engine.images.add([ImageJob.of(engine.builder, PROMPTS[0], (0,), SamplingParams(guidance_scale=1.0))])
    assert (np.asarray(engine.preview(engine.images.partial(picture))) == MISSING_GREY).all()
    for _ in range(6):
        engine.images.step()
    shown = np.asarray(engine.preview(engine.images.partial(picture)))
    grey = (shown == MISSING_GREY).all(-1)
    assert grey[8:].all()  # rows three and four of four, of four pixels each
    assert grey[4:8, 8:].all()
    assert not grey[:4].all()
    assert not grey[4:8, :8].all()
    for _ in range(2):
        engine.images.step()
    half = engine.images.partial(picture)
    whole = np.asarray(engine.render(half.repeat(2)[None])[0])
    assert (np.asarray(engine.preview(half))[:8] == whole[:8]).all(), "the rest is filled with what there is"


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[3], KINDS[4]], ids=str)
def test_both_sides_share_what_both_use(make_model: MakeModel, processor: UniJanusProcessor, kind: dict[str, Any]) -> None:
    """Once both sides are laid out the whole model is let go; two sides take no more than it did and the shared expert again."""
    model = make_model(**kind)
    whole, text = size(model), model.config.text_config
    engine = Engine(model, processor, max_prompt_length=40, max_length=96)
    sides = engine.images.model, engine.answers.model
    assert engine._model is None
    both = torch.nn.ModuleList(sides)
    if not kind:
        assert sides[0] is sides[1] is model
        assert size(both) == whole
        return
    shared_expert = 4 * 3 * text.hidden_size * text.intermediate_size * text.num_hidden_layers
    attention = 4 * 4 * text.hidden_size**2 * text.num_hidden_layers if text.lora_per_task else 0
    assert size(both) <= whole + shared_expert + attention + 4 * 4 * text.hidden_size * text.num_hidden_layers
    table = {side.get_input_embeddings().weight.data_ptr() for side in sides}
    assert len(table) == 1


@pytest.fixture(scope="module")
def saved(make_model: MakeModel, processor: UniJanusProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    make_model(**KINDS[4]).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("task", list(Task))
def test_one_task_loaded_is_one_task_taken(saved: Path, task: Task) -> None:
    """The same weights bit for bit, and no more bytes in memory than they have."""
    taken: UnifiedModel = one_task(load(str(saved))[0], task)
    loaded, _ = load_one_task(str(saved), task)
    assert loaded.config.text_config.to_dict() == taken.config.text_config.to_dict()
    expected = taken.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        if ".first_" in name:  # products of mapped weights, which lie unaligned, differ in their last bits
            torch.testing.assert_close(tensor, expected[name], atol=2e-5, rtol=2e-5)
        else:
            assert torch.equal(tensor, expected[name]), name
    assert all(torch.equal(buffer, taken.get_buffer(name)) for name, buffer in loaded.named_buffers())
    assert size(loaded) == sum(tensor.nbytes for name, tensor in expected.items() if name in dict(loaded.named_parameters()))


def test_an_engine_of_one_task(saved: Path) -> None:
    slim, whole = Engine.load(str(saved), task="t2i"), Engine.load(str(saved))
    one, other = (engine.generate_images(PROMPTS, 1, 2, SamplingParams(guidance_scale=3.0)) for engine in (slim, whole))
    assert [np.asarray(row[0]).tolist() for row in one] == [np.asarray(row[0]).tolist() for row in other]
    with pytest.raises(ValueError, match="task='t2i' alone"):
        _ = slim.answers
    with pytest.raises(ValueError, match="task='draw' is not one of mmu, t2i"):
        Engine.load(str(saved), task="draw")


def test_a_truncated_checkpoint_is_told(saved: Path, tmp_path: Path) -> None:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        Engine.load(str(tmp_path), task="mmu")


def test_source_images(make_model: MakeModel, processor: UniJanusProcessor, pictures: np.ndarray) -> None:
    """Room for them is made when it is needed; a text takes one list of images, a list of texts one list per text."""
    model, sampling = make_model(), SamplingParams(guidance_scale=3.0, temperature=0.0)
    engine = Engine(make_model(), processor, max_batch_size=3, max_prompt_length=40)
    shown: list[list[np.ndarray]] = [[pictures[0], pictures[1]], []]
    jobs = [ImageJob.of(engine.builder, PROMPTS[n], (0, n, 0), sampling, pictures=some) for n, some in enumerate(shown)]
    expected = decode_images(model, draw_tokens(model, engine.builder, jobs))
    images = [[Image.fromarray(picture) for picture in some] for some in shown]
    found = engine.generate_images(PROMPTS, 1, 0, sampling, images=images)
    assert [np.asarray(one).tolist() for [one] in found] == expected.tolist()
    [alone] = engine.generate_images(PROMPTS[0], 1, 0, sampling, images=images[0])
    assert np.asarray(alone).tolist() == expected[0].tolist()
    for wrong in (images[0], images[:1]):
        with pytest.raises(ValueError, match="give a list of images per prompt"):
            engine.generate_images(PROMPTS, images=wrong)
