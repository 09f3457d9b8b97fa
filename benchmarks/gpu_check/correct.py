"""Same numbers on a GPU as on the CPU: kernels, training steps and tokens of every structure, CUDA graphs, samplers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_check.check import Check, Switched
from benchmarks.gpu_check.findings import Goal
from benchmarks.gpu_check.sizes import ONE_TASK_MIXTURE, STRUCTURES, TINY, packed, training_batch
from benchmarks.image_loop import SMALL, sides
from benchmarks.tiny import processor_of, samples
from unidecouple.batch import JointBatch, Task
from unidecouple.data.sequences import SequenceBuilder, collate
from unidecouple.generate.answer_generator import AnswerGenerator, generate_answers
from unidecouple.generate.image_generator import ImageGenerator, generate_image_tokens
from unidecouple.generate.jobs import AnswerJob, image_jobs
from unidecouple.generate.replay import Recorder
from unidecouple.generate.sampling import GREEDY, SamplingParams
from unidecouple.methods.objective import Objective
from unidecouple.models.experts import Experts
from unidecouple.models.janus import UniJanusForConditionalGeneration as Model
from unidecouple.models.tiny import tiny_config, tiny_model
from unidecouple.train.parallel import Parallel
from unidecouple.train.step import StepSettings, train_step

SIZE = replace(TINY, image_size=64, hidden_size=64, intermediate_size=96)
"""Images of 64 tokens."""

TINY_STRUCTURE = "UniDecouple, stage 2"

EQUAL = Goal(1.0, always=True)
COUNTS = ((37, 0, 91, 3), (0, 0, 0, 5), (128, 128, 128, 128), (0, 0, 131, 0))
"""Tokens of each expert; some are empty."""

SAMPLERS = {
    "greedy": GREEDY,
    "temperature": SamplingParams(),
    "top_k": SamplingParams(top_k=50),
    "top_p": SamplingParams(top_p=0.9),
}


def at_most(bound: float) -> Goal:
    """A tolerance, judged on any device."""
    return Goal(bound, at_most=True, always=True)


def run(check: Check) -> None:
    """All comparisons; each is a finding."""
    size = replace(SIZE, image_size=32) if check.tiny else SIZE
    processor = processor_of(size)
    builder = SequenceBuilder(processor)
    make = lambda **text: _lively(tiny_model(tiny_config(processor.tokenizer, size, **text), seed=0))  # noqa: E731
    for dtype in (torch.bfloat16, torch.float32):
        with check.attempt(f"grouped_mm {dtype}"):
            _grouped_mm(check, dtype)
    with check.attempt("masks"):
        for length in (192,) if check.tiny else (192, 320, 704):
            _masked_attention(check, length)
    pad = builder.tokenizer.pad_token_id
    joint = tuple(collate(samples(builder, size, counts, seed), pad) for seed, counts in enumerate(((3, 0, 0), (0, 0, 3))))
    for name, text in STRUCTURES.items():
        if check.tiny and name != TINY_STRUCTURE:
            continue
        with check.attempt(f"step, {name}"):
            _steps(check, name, make(**text), joint)
        with check.attempt(f"tokens, {name}"):
            _tokens(check, name, make(**text), builder)
    with check.attempt("packed step"):
        _packed_step(check, make())
    for text in (ONE_TASK_MIXTURE,) if check.tiny else ({}, ONE_TASK_MIXTURE):
        with check.attempt("loops"):
            _loops(check, text)
    with check.attempt("experts' waits"):
        _waits_of_experts(check)
    model = make().to(check.device)
    for name, sampling in list(SAMPLERS.items())[-1 if check.tiny else 0 :]:
        with check.attempt(f"sampler {name}"):
            _sampler(check, name, model, builder, sampling)


def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest entry of ``wanted``; NaN if there is one."""
    wanted = wanted.detach().double().cpu()
    return float((found.detach().double().cpu() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-9))


def _grouped_mm(check: Check, dtype: torch.dtype) -> None:
    """Experts by grouped_mm, beside a loop in double precision."""
    for counts in COUNTS[:1] if check.tiny else COUNTS:
        torch.manual_seed(0)
        torch.full((1 << 22,), float("nan"), device=check.device)  # freed at once: what the allocator hands out next is poisoned
        layer = Experts(4, 64, 96, "grouped_mm", 0, 1.0).to(check.device, dtype)
        exact = copy.deepcopy(layer).double()
        exact.backend = "loop"
        expert = torch.arange(4, device=check.device).repeat_interleave(torch.tensor(counts, device=check.device)).unsqueeze(1)
        x, into = torch.randn(2, len(expert), 64, device=check.device, dtype=dtype).unbind()
        found, wanted = (_experts(one, x, expert, into) for one in (layer, exact))
        off = torch.tensor([relative(*pair) for pair in zip(found, wanted, strict=True)]).max().item()  # torch's max keeps NaN
        goal = at_most(3e-2 if dtype is torch.bfloat16 else 1e-4)
        check.add(f"experts by grouped_mm, {dtype}, {counts}: output and gradients", off, "", goal)
        if 0 in counts:
            there = torch.tensor(counts, device=check.device) > 0
            empty = torch.stack([gradient[~there].abs().max() for gradient in found[2:]])
            check.add(f"experts by grouped_mm, {dtype}, {counts}: gradient of empty experts", empty.max().item(), "", at_most(0.0))


def _experts(layer: Experts, x: Tensor, expert: Tensor, into: Tensor) -> list[Tensor]:
    """Output, and gradients of the input and of both stacked weights."""
    x = x.detach().to(layer.down_proj.dtype).requires_grad_()
    y = layer(x, expert, torch.ones_like(expert, dtype=x.dtype))
    return [y, *torch.autograd.grad(y, (x, layer.gate_up_proj, layer.down_proj), into.to(y.dtype))]


def _masked_attention(check: Check, length: int) -> None:
    """Gradients of attention with a mask where length % 128 == 64 (pytorch #196678: NaN in cuDNN's backward pass)."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, 2, 4, length, 64, generator=generator)
    mask = torch.ones(length, length, dtype=torch.bool).tril()

    def gradient(inputs: Tensor) -> Tensor:
        inputs = inputs.detach().requires_grad_()
        query, key, value = inputs.unbind()
        F.scaled_dot_product_attention(query, key, value, mask.to(inputs.device)).square().sum().backward()
        assert inputs.grad is not None
        return inputs.grad

    found = gradient(qkv.to(check.device, torch.bfloat16))
    check.add(f"attention with a mask, {length} tokens: gradients", relative(found, gradient(qkv)), "", at_most(0.05))


def _stepper(model: Model, joint: JointBatch, device: torch.device, bf16: bool) -> Callable[[], dict[str, float]]:
    """Losses of one training step after the other; routed by labels, so that rounding decides no group."""
    model = copy.deepcopy(model).train().to(device)
    model.model.vqmodel.eval()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)
    options = {"routing": "label"} if model.config.text_config.ffn == "ta_moe" else {}
    parallel = Parallel(device=device, bf16=bf16)
    settings = StepSettings(Objective(), tuple(Task), parallel=parallel, forward_options=lambda batch, step: options)
    parts = [tuple(batch.to(device) for batch in joint)]
    return lambda: train_step(model, optimizer, parts, settings).losses


def _off(found: list[dict[str, float]], wanted: list[dict[str, float]]) -> float:
    pairs = [(a[name], b[name]) for a, b in zip(found, wanted, strict=True) for name in b]
    return torch.tensor([abs(a - b) / max(1.0, abs(b)) for a, b in pairs]).max().item()


def _steps(check: Check, name: str, model: Model, joint: JointBatch) -> None:
    """Losses of three steps, so that gradients and updates count, too."""
    makers = {
        where: _stepper(model, joint, device, bf16)
        for where, device, bf16 in (
            ("CPU", torch.device("cpu"), False),
            ("float32", check.device, False),
            ("bfloat16", check.device, True),
        )
    }
    found = {where: [make() for _ in range(1 if check.tiny else 3)] for where, make in makers.items()}
    check.add(f"steps, {name}, float32", _off(found["float32"], found["CPU"]), "", at_most(5e-4))
    check.add(
        f"steps, {name}, bfloat16",
        _off(found["bfloat16"], found["CPU"]),
        "",
        at_most(0.05),
        **check.waits(makers["bfloat16"]),
    )


def _packed_step(check: Check, model: Model) -> None:
    """Rows that hold several sequences, which need a mask, of a length that is 64 modulo 128."""
    for rows in (3,) if check.tiny else (1, 3):
        batches = training_batch(model.config, rows, torch.device("cpu"))
        joint = tuple(packed(batch, (64 - batch.input_ids.numel()) % 128) for batch in batches)
        found = {bf16: [_stepper(model, joint, check.device, bf16)()] for bf16 in (False, True)}
        wanted = [_stepper(model, batches, torch.device("cpu"), bf16=False)()]
        for bf16, goal in ((False, 5e-4), (True, 0.05)):
            lengths = [batch.input_ids.shape[1] for batch in joint]
            name = f"packed rows of {lengths} tokens beside unpacked, {'bfloat16' if bf16 else 'float32'}"
            check.add(name, _off(found[bf16], wanted), "", at_most(goal))


@torch.no_grad()
def _lively(model: Model) -> Model:
    """``model`` with every matrix at variance 1 / fan-in, low-rank updates too: at the start, logits are all but equal."""
    generator = torch.Generator().manual_seed(1)
    for weight in model.eval().parameters():
        if weight.ndim > 1:
            weight.normal_(std=(weight.shape[-1] if weight.ndim == 3 else weight[0].numel()) ** -0.5, generator=generator)
    return model


def _draw(model: Model, builder: SequenceBuilder, sampling: SamplingParams, recorder: Recorder | None) -> Tensor:
    jobs = image_jobs(builder, ["a photo of a cow", "a red pig"], 2, 0, sampling.override(guidance_scale=3.0))
    return generate_image_tokens(ImageGenerator(model, builder, 3, 40, recorder), jobs).cpu()


def _answers(model: Model, builder: SequenceBuilder, recorder: Recorder | None) -> list[Any]:
    side = model.config.vision_config.image_size
    image = torch.randint(256, (side, side, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    asked = [
        AnswerJob(builder.understanding_prompt(words), (image,), 12) for words in ("What is this?", "How many pigs are there?")
    ]
    return list(generate_answers(AnswerGenerator(model, builder, max_batch_size=2, recorder=recorder), asked))


def _tokens(check: Check, name: str, model: Model, builder: SequenceBuilder) -> None:
    """Greedy tokens of the engine in float32, replayed, beside the CPU's."""
    if model.config.text_config.per_group_attention == "group":
        return  # the engine refuses it
    wanted, answers = _draw(model, builder, GREEDY, None), _answers(model, builder, None)
    moved = copy.deepcopy(model).to(check.device)
    found = _draw(moved, builder, GREEDY, check.recorder())
    check.add(f"image tokens, {name}: share equal", float((found == wanted).double().mean()), "", EQUAL)
    alike = _answers(moved, builder, check.recorder()) == answers
    check.add(f"answers, {name}: equal", float(alike), "", EQUAL)


def _loops(check: Check, text: dict[str, Any]) -> None:
    """Greedy tokens of the engine, replayed and launched from Python, and of the loops it is compared with."""
    switch = Switched(check.recorder())
    made = sides(2, TINY if check.tiny else SMALL, check.device, torch.float32, switch, **text)
    wanted = made.engine(greedy=True)
    switch.on = False
    for name, call in {
        "from Python": made.engine,
        "transformers generate": made.transformers,
        "deepseek's loop": made.deepseek,
    }.items():
        share = float((call(greedy=True) == wanted).double().mean())
        check.add(f"{name} and engine replayed, {text.get('ffn', 'dense')}: share equal", share, "", EQUAL)


def _waits_of_experts(check: Check) -> None:
    layer = Experts(4, 64, 96, "grouped_mm", 0, 1.0).to(check.device, torch.bfloat16)
    x = torch.randn(64, 64, device=check.device, dtype=torch.bfloat16)
    expert, weight = torch.randint(4, (64, 1), device=check.device), torch.ones(64, 1, device=check.device)
    check.add("host waits of one expert layer", **check.waits(partial(layer, x, expert, weight)))


def _sampler(check: Check, name: str, model: Model, builder: SequenceBuilder, sampling: SamplingParams) -> None:
    launched, replayed = (_draw(model, builder, sampling, recorder) for recorder in (None, check.recorder()))
    check.add(f"sampler {name}, replayed and launched: share equal", float((launched == replayed).double().mean()), "", EQUAL)
