"""C4: 64 image tokens of 16 images (and of one) with guidance: the engine against the loops that people run.

All sides have the same dense Janus with random weights and the same prompt; greedy tokens are compared first. Then each draws by
its own way of sampling at temperature 1.

- full recompute: no cache, every step reads all tokens again.
- deepseek's loop: what deepseek-ai/Janus's generation_inference.py does, made anew over transformers' modules: prompts and hidden
  prompts in turn as rows, a growing cache, softmax and multinomial, each token embedded for both rows.
- transformers' ``generate(generation_mode="image")``.
- our plain loop (generate/image.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, JanusConfig, JanusForConditionalGeneration, LlamaConfig

from benchmarks.layers import with_their_experts
from benchmarks.record import Result, Row
from benchmarks.timing import LEAST_REPEATS, Ratio, SidesDifferError, interleave, one_thread
from benchmarks.tiny import SIZE, model_of, processor_of
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.generate.image import draw_tokens
from unidecouple.generate.image_generator import ImageGenerator, generate_image_tokens
from unidecouple.generate.jobs import ImageJob, image_jobs
from unidecouple.generate.layout import layers_of
from unidecouple.generate.replay import Recorder
from unidecouple.generate.sampling import SamplingParams
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.moe import MixtureOfExperts
from unidecouple.models.processing import UniJanusProcessor
from unidecouple.models.tiny import TinySize

PICTURES, GUIDANCE = (16, 1), 5.0
PROMPT = "a photo of a red cow and a blue pig"
SMALL = replace(SIZE, image_size=128, hidden_size=192, num_hidden_layers=6, intermediate_size=512, codes=512)
GOALS = {"full recompute": 28.0, "deepseek's loop": 1.8, "transformers generate": 1.8}
ENGINE, CPU = "engine", torch.device("cpu")


@dataclass(frozen=True)
class Sides:
    """What draws ``PROMPT`` ``pictures`` times, greedily or not; each side returns its image tokens.

    Attributes:
        plain: transformers' own model.
        model: ours, of the same weights.
        builder: of its processor.
        drawing: the engine's.
        images: at a time.
    """

    plain: JanusForConditionalGeneration
    model: UniJanusForConditionalGeneration
    builder: SequenceBuilder
    drawing: ImageGenerator
    pictures: int

    def jobs(self, greedy: bool) -> list[ImageJob]:
        """Of our sides."""
        sampling = SamplingParams(guidance_scale=GUIDANCE, temperature=0.0 if greedy else 1.0)
        return image_jobs(self.builder, [PROMPT], self.pictures, 0, sampling)

    def engine(self, greedy: bool) -> Tensor:
        """Ours."""
        return generate_image_tokens(self.drawing, self.jobs(greedy))

    def our_plain_loop(self, greedy: bool) -> Tensor:
        """Ours, with the library's cache."""
        return draw_tokens(self.model, self.builder, self.jobs(greedy))

    def transformers(self, greedy: bool) -> Tensor:
        """The library's ``generate``."""
        ids = torch.tensor([self.builder.generation_prompt(PROMPT)] * self.pictures, device=self.plain.device)
        settings = {"generation_mode": "image", "guidance_scale": GUIDANCE, "do_sample": not greedy}
        settings |= {} if greedy else {"top_k": 0}  # all of them; the library's own default is 50
        return self.plain.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)

    def deepseek(self, greedy: bool, cached: bool = True, tokens: int | None = None) -> Tensor:
        """The original's loop, of all tokens or so many; without ``cached`` every step reads all of them again."""
        model, rows = self.plain.model, []
        for _ in range(self.pictures):
            rows += [self.builder.generation_prompt(PROMPT), self.builder.generation_prompt(PROMPT, dropped=True)]
        embeds, drawn = model.get_input_embeddings()(torch.tensor(rows, device=model.device)), []
        cache = DynamicCache(config=model.language_model.config) if cached else None
        for _ in range(tokens or self.model.num_image_tokens):
            out = model.language_model(None, None, None, cache, embeds, use_cache=cached)  # the cache has a name by release
            logits = model.generation_head(out.last_hidden_state[:, -1])
            cond, uncond = logits[0::2], logits[1::2]
            probs = (uncond + GUIDANCE * (cond - uncond)).softmax(-1)
            token = probs.argmax(-1, keepdim=True) if greedy else torch.multinomial(probs, 1)
            drawn.append(token)
            new = self.plain.prepare_embeddings_for_image_generation(token.repeat(1, 2).view(-1, 1))
            embeds = new if cached else torch.cat([embeds, new], 1)
        return torch.cat(drawn, 1)


def sides(
    pictures: int,
    size: TinySize | None = None,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    recorder: Recorder | None = None,
    **text: Any,
) -> Sides:
    """All of one random model, the engine with weights of its own, since it lays them out anew.

    Args:
        images: at a time.
        size: of the model; None: ``SMALL``.
        device: where its weights are made.
        dtype: of the weights.
        recorder: of the engine's steps.
        text: fields of its decoder; a mixture (``ffn="moe"``) is no model of transformers, so the library's side is then ours with
            the library's eager experts.
    """
    size = size or SMALL
    processor = processor_of(size)
    model, mine = (random_model(processor, size, device, dtype, **text) for _ in range(2))
    plain = with_eager_experts(model) if text else as_library(model)
    settings, tokenizer = plain.generation_config, processor.tokenizer
    settings.generation_kwargs = {"boi_token_id": tokenizer.convert_tokens_to_ids("<begin_of_image>")}
    for name in ("bos", "eos", "pad"):
        setattr(settings, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    builder = SequenceBuilder(processor)
    drawing = ImageGenerator(mine, builder, pictures, max_prompt_length=32, recorder=recorder)
    return Sides(plain, model, builder, drawing, pictures)


@torch.no_grad()
def random_model(
    processor: UniJanusProcessor, size: TinySize, device: torch.device, dtype: torch.dtype, **text: Any
) -> UniJanusForConditionalGeneration:
    """Random weights, made where and as they are used (7B in float32 on the way would not fit), of variance 1 / fan-in.

    At the library's variance logits are all but equal.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = model_of(processor, size, **text).requires_grad_(requires_grad=False)
    finally:
        torch.set_default_dtype(before)
    generator = torch.Generator(device).manual_seed(1)
    for weight in model.parameters():
        if weight.ndim > 1:
            fan_in = weight.shape[-1] if weight.ndim == 3 else weight[0].numel()
            weight.normal_(std=fan_in**-0.5, generator=generator)
    return model


def as_library(model: UniJanusForConditionalGeneration) -> JanusForConditionalGeneration:
    """The library's own model of the same weights, not copied."""
    raw, known = model.config.to_dict(), LlamaConfig().to_dict().keys() - {"model_type"}
    text = LlamaConfig(**{name: value for name, value in raw["text_config"].items() if name in known})
    parts = {name: raw[name] for name in ("vision_config", "vq_config", "image_token_id", "tie_word_embeddings")}
    with model.device:
        plain = JanusForConditionalGeneration(JanusConfig(text_config=text, **parts)).eval()
    plain.load_state_dict(model.state_dict(), assign=True)
    return plain


def with_eager_experts(model: UniJanusForConditionalGeneration) -> UniJanusForConditionalGeneration:
    """``model`` with the library's eager experts in place of ours."""
    for layer in layers_of(model.decoder):
        assert isinstance(layer.mlp, MixtureOfExperts)
        with model.device:
            layer.mlp = with_their_experts(layer.mlp, "eager").to(model.dtype)
    return model.requires_grad_(requires_grad=False)


@torch.no_grad()
def run(repeats: int = LEAST_REPEATS) -> Result:
    """Compare greedy tokens, then time."""
    one_thread()
    rows: list[Row] = []
    details: dict[str, object] = {"size": asdict(SMALL)}
    for pictures in PICTURES:
        seconds = measured(sides(pictures), repeats)
        details[f"{pictures} images"] = {"seconds": seconds}
        for name in list(seconds)[1:]:
            ratio, goal = Ratio.of(seconds[name], seconds[ENGINE]), GOALS.get(name) if pictures == PICTURES[0] else None
            met = None if goal is None else round(ratio.median, 2) >= goal
            text = "" if goal is None else f"at least {goal:.1f}"
            rows.append(Row(f"{pictures} images: {name} / {ENGINE}", ratio.median, "x", ratio.low, ratio.high, text, met))
    settings = {"tokens": SMALL.num_image_tokens, "guidance": GUIDANCE, "repeats": repeats, "seed": 0}
    return Result("image_loop", "C4: image tokens of images with guidance (more is better)", settings, rows, details)


def measured(made: Sides, repeats: int) -> dict[str, list[float]]:
    """CPU seconds of every side, ours first.

    Raises:
        SidesDifferError: one draws other tokens; nothing is timed then.
    """
    ways: dict[str, Callable[[bool], Tensor]] = {
        ENGINE: made.engine,
        "our plain loop": made.our_plain_loop,
        "transformers generate": made.transformers,
        "deepseek's loop": made.deepseek,
        "full recompute": lambda greedy: made.deepseek(greedy, cached=False),
    }
    wanted = made.engine(greedy=True)
    for name, way in ways.items():
        if not torch.equal(way(True), wanted):
            raise SidesDifferError(f"{name} draws other tokens than {ENGINE}: nothing was timed")
    return interleave({name: partial(way, False) for name, way in ways.items()}, repeats, lambda: None)


if __name__ == "__main__":
    result = run()
    print(f"{result.table()}\n{result.write()}")
