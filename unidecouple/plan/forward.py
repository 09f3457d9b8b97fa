"""The model's forward on a joint batch as an ``OpTrace``. Follows ``models/`` and transformers' own.

Torch's counters on the real model give the same FLOPs but are too slow to plan with: a joint batch of Janus-Pro-1B takes 11 CPU
seconds under ``FakeTensorMode`` and 0.03 here, and a plan traces up to a hundred shapes. So the tests compare both on tiny models.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from unidecouple.batch import Task
from unidecouple.methods.selection import part_of
from unidecouple.models.base import UnifiedModel
from unidecouple.models.configuration import UniJanusConfig
from unidecouple.models.emu3 import UniEmu3Config
from unidecouple.models.families import UnifiedConfig
from unidecouple.plan.batch_shapes import BatchShape
from unidecouple.plan.delta_ops import embedding_deltas, norm_deltas, with_deltas
from unidecouple.plan.encoding import encoding
from unidecouple.plan.heads import head
from unidecouple.plan.op_trace import INDEX, OpTrace, Shape, TracedTensor

DECODER = "model.language_model"


@dataclass(frozen=True)
class TracedModel:
    """A model as a trace sees it.

    Attributes:
        config: of the model.
        shapes: of all its parameters, by name.
        trains: names of those that train.
        routing: "learned" or "label".
        width: bytes per activation, 4 or 2.
    """

    config: UnifiedConfig
    shapes: Mapping[str, Shape]
    trains: Collection[str]
    routing: str
    width: int

    @classmethod
    def of(cls, model: UnifiedModel, trains: Collection[str], routing: str, width: int) -> TracedModel:
        """``model``, which may be on the meta device."""
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        return cls(model.config, shapes, trains, routing, width)

    @property
    def labelled(self) -> bool:
        """Whether the group ids of tokens are known before the first layer."""
        text = self.config.text_config
        return self.routing == "label" or text.context_router or text.labelled_updates


def trace_ops(
    model: TracedModel, parts: Sequence[BatchShape], tasks: Collection[Task] = tuple(Task), distilled: Task | None = None
) -> OpTrace:
    """Trace one step's forward and backward over micro-batches of shapes ``parts``.

    Args:
        model: the model.
        parts: see ``BatchShape``.
        tasks: whose losses are computed.
        distilled: the task whose targets are also compared with the model without its updates (``SelfDistillation``).
    """
    trace = OpTrace(model.shapes, model.trains, model.width)
    for part in parts:
        hidden = _decoder(trace, model, part)
        for task in tasks:
            head(trace, task, part, hidden, model.config)
        if distilled in tasks and part.task is distilled:
            _compare(trace, model, part, hidden)
    return trace


def _compare(trace: OpTrace, model: TracedModel, part: BatchShape, hidden: TracedTensor) -> None:
    """The forward pass without updates, and the head once more on the states of either pass."""
    before, logits = trace.flops(backward=False), trace.logits
    head(trace, part.task, part, hidden, model.config)
    trace.logits += trace.logits - logits  # and the reference's
    without = replace(model, shapes={name: shape for name, shape in model.shapes.items() if "lora_" not in name}, trains=())
    plain = trace_ops(without, (part,), (part.task,))
    trace.ops += [op._replace(block=-1) for op in plain.ops]
    trace.largest, trace.encoding = max(trace.largest, plain.largest), max(trace.encoding, plain.encoding)
    trace.reference += trace.flops(backward=False) - before


def _embed(trace: OpTrace, config: UnifiedConfig, part: BatchShape) -> TracedTensor:
    rows, hidden = part.tokens, config.text_config.hidden_size
    if text := trace.use(f"{DECODER}.embed_tokens.weight"):
        trace.kept += rows * INDEX
    text |= embedding_deltas(trace, f"{DECODER}.embed_tokens", rows)
    if isinstance(config, UniEmu3Config):
        if part.pictures:
            one = encoding(config.vq_config, config.image_size)
            trace.note("image_tokenizer", part.pictures * one.flops, part.pictures * one.moved, False)
            trace.encoding = max(trace.encoding, part.pictures * one.peak)
        return trace.pointwise("embeddings", (), rows * hidden, text)
    seen = _vision(trace, config, part.pictures) if part.pictures else None
    if coded := trace.use("model.generation_embeddings.weight"):
        trace.kept += rows * INDEX
    codes = trace.new(rows * config.vq_config.embed_dim, coded)
    drawn = _mlp(trace, "model.generation_aligner", rows, codes, "generation")  # at every position; the mask comes after
    if text or (seen is not None and seen.grad):
        trace.kept += rows * (seen is not None)  # the mask of placeholders
    grad = text or drawn.grad or (seen is not None and seen.grad)
    trace.kept += rows * grad  # the mask of image tokens
    return trace.pointwise("embeddings", (drawn, drawn), rows * hidden, grad)


def _vision(trace: OpTrace, config: UniJanusConfig, pictures: int) -> TracedTensor:
    vision, name = config.vision_config, "model.vision_model"
    rows, width = pictures * vision.num_image_tokens, vision.hidden_size
    pixels = trace.new(pictures * vision.num_channels * vision.image_size**2, False)
    x = trace.linear(f"{name}.embeddings.patch_embedding", rows, pixels)
    x.grad |= trace.use(f"{name}.embeddings.position_embedding.weight")
    x = trace.pointwise("vision", (x,), rows * width, x.grad)
    heads = vision.num_attention_heads
    for index in range(vision.num_hidden_layers):
        layer = f"{name}.encoder.layers.{index}"
        with trace.block(layer, x):
            normed = trace.layer_norm(f"{layer}.layer_norm1", rows, x, "vision")
            query, key, value = (trace.linear(f"{layer}.self_attn.{p}_proj", rows, normed) for p in "qkv")
            mixed = trace.attention(pictures, heads, vision.num_image_tokens, width // heads, (query, key, value))
            mixed = trace.linear(f"{layer}.self_attn.projection_layer", rows, mixed)
            x = trace.pointwise("vision", (x, mixed), x.elements, x.grad or mixed.grad)
            normed = trace.layer_norm(f"{layer}.layer_norm2", rows, x, "vision")
            inner = trace.activation(trace.linear(f"{layer}.mlp.fc1", rows, normed), "vision")
            out = trace.linear(f"{layer}.mlp.fc2", rows, inner)
            x = trace.pointwise("vision", (x, out), x.elements, x.grad or out.grad)
    x = trace.layer_norm(f"{name}.post_layernorm", rows, x, "vision")
    return _mlp(trace, "model.aligner", rows, x, "vision")


def _mlp(trace: OpTrace, name: str, rows: int, x: TracedTensor, part: str) -> TracedTensor:
    x, index = trace.linear(f"{name}.fc1", rows, x), 0
    while f"{name}.hidden_layers.{index}.weight" in trace.shapes:
        x, index = trace.linear(f"{name}.hidden_layers.{index}", rows, trace.activation(x, part)), index + 1
    return x


def _decoder(trace: OpTrace, model: TracedModel, part: BatchShape) -> TracedTensor:
    x = _embed(trace, model.config, part)
    text, rows = model.config.text_config, part.tokens
    turn = trace.new(2 * part.length * text.head_dim, False)  # cosines and sines of the positions, one tensor for all layers
    if text.context_router:
        _context_router(trace, model.config, part, turn)
    for index in range(text.num_hidden_layers):
        layer = f"{DECODER}.layers.{index}"
        with trace.block(layer, x):
            normed = _norm(trace, f"{layer}.input_layernorm", rows, x)
            mixed = _attention(trace, model, part, index, normed, turn)
            x = trace.pointwise("attention", (x, mixed), x.elements, x.grad or mixed.grad)
            normed = _norm(trace, f"{layer}.post_attention_layernorm", rows, x)
            out = _feed_forward(trace, model, rows, f"{layer}.mlp", normed)
            x = trace.pointwise("ffn", (x, out), x.elements, x.grad or out.grad)
    return _norm(trace, f"{DECODER}.norm", rows, x)


def _norm(trace: OpTrace, name: str, rows: int, x: TracedTensor) -> TracedTensor:
    return trace.rms_norm(name, rows, x, norm_deltas(trace, name, rows, x))


def _attention(
    trace: OpTrace, model: TracedModel, part: BatchShape, layer: int, x: TracedTensor, turn: TracedTensor
) -> TracedTensor:
    text, rows, name = model.config.text_config, part.tokens, f"{DECODER}.layers.{layer}.self_attn"
    untied = len(trace.shapes[f"{name}.q_proj.weight"]) == 3
    grouped = model.labelled or layer > 0
    if untied:
        sorted_rows = _by_group(trace, "attention", x)
        query, key, value = (_by_group(trace, "attention", _set(trace, f"{name}.{p}_proj", rows, sorted_rows)) for p in "qkv")
    else:
        query, key, value = (_adapted(trace, f"{name}.{p}_proj", rows, x, grouped) for p in "qkv")
    mixed = _rotated_attention(trace, "attention", part, text.num_attention_heads, (query, key, value), turn)
    if untied:
        if text.per_group_attention == "group":
            trace.kept += part.samples * part.length**2 * trace.width * mixed.grad  # the mask, as the kernel adds it to the scores
        sorted_rows = _by_group(trace, "attention", mixed)
        return _by_group(trace, "attention", _set(trace, f"{name}.o_proj", rows, sorted_rows))
    return _adapted(trace, f"{name}.o_proj", rows, mixed, grouped)


def _rotated_attention(
    trace: OpTrace,
    kind: str,
    part: BatchShape,
    heads: int,
    projected: tuple[TracedTensor, TracedTensor, TracedTensor],
    turn: TracedTensor,
) -> TracedTensor:
    """Attention whose queries and keys are rotated by ``turn``, as operations of ``kind``."""
    query, key, value = projected
    if query.grad or key.grad:
        trace.keep(turn)
    query, key = (trace.pointwise(kind, (v, v), v.elements, v.grad) for v in (query, key))
    return trace.attention(part.samples, heads, part.length, query.elements // (part.tokens * heads), (query, key, value))


def _by_group(trace: OpTrace, part: str, x: TracedTensor) -> TracedTensor:
    """Tokens laid side by side by group, or back; where each stands is found once for all layers."""
    return trace.pointwise(part, (x,), x.elements, x.grad)


def _set(trace: OpTrace, name: str, rows: int, x: TracedTensor) -> TracedTensor:
    """An ``UntiedLinear`` on sorted rows: each row meets one of its matrices."""
    out = trace.product(f"{name}.weight", rows, x, stacked=True)
    out.grad |= trace.use(f"{name}.bias")
    return out


def _context_router(trace: OpTrace, config: UnifiedConfig, part: BatchShape, turn: TracedTensor) -> None:
    text, rows, name = config.text_config, part.tokens, f"{DECODER}.context_router"
    x = trace.pointwise("task_router", (), rows * text.hidden_size, False)
    query, key, value = (trace.linear(f"{name}.attention.{p}_proj", rows, x) for p in "qkv")
    mixed = _rotated_attention(trace, "task_router", part, 1, (query, key, value), turn)
    seen = trace.linear(f"{name}.attention.o_proj", rows, mixed)
    trace.product(f"{name}.weight", rows, trace.pointwise("task_router", (x, seen), x.elements, seen.grad))


def _adapted(trace: OpTrace, name: str, rows: int, x: TracedTensor, grouped: bool) -> TracedTensor:
    """A ``LoraLinear`` and its deltas."""
    return with_deltas(trace, name, rows, x, _updated(trace, name, rows, x, grouped))


def _updated(trace: OpTrace, name: str, rows: int, x: TracedTensor, grouped: bool) -> TracedTensor:
    """A ``LoraLinear`` without deltas; with one pair a task it needs the token's group, else its update is left out."""
    out = trace.linear(name, rows, x)
    if f"{name}.lora_A" not in trace.shapes:
        return out
    groups, rank, inner = trace.shapes[f"{name}.lora_A"]
    if groups > 1 and not grouped:
        return out
    if f"{name}.lora_R" in trace.shapes:
        return _mixed(trace, name, rows, x, out)
    outer = trace.shapes[f"{name}.lora_B"][1]
    low = _flat_product(trace, f"{name}.lora_A", rows, x, (groups * rank, inner))
    if groups > 1:
        low = trace.times(low, trace.new(rows * groups, False), "lora")
    change = _flat_product(trace, f"{name}.lora_B", rows, low, (outer, groups * rank))
    if groups > 1 and low.grad:
        trace.kept += groups * rank * outer * trace.width  # B of all groups side by side is a copy
    return trace.pointwise("lora", (out, change), out.elements, out.grad or change.grad)


def _mixed(trace: OpTrace, name: str, rows: int, x: TracedTensor, out: TracedTensor) -> TracedTensor:
    """A ``MixedLoraLinear``: ``out`` and its pairs, weighed per token."""
    (groups, rank, inner), (pairs, outer, _) = trace.shapes[f"{name}.lora_A"], trace.shapes[f"{name}.lora_B"]
    low = _flat_product(trace, f"{name}.lora_A", rows, x, (groups * rank, inner))
    logits = _flat_product(trace, f"{name}.lora_R", rows, x, trace.shapes[f"{name}.lora_R"])
    mix = trace.pointwise("lora", (logits,), rows * pairs, logits.grad)
    trace.kept += logits.bytes * logits.grad  # the softmax keeps what it returns
    if groups > 1:
        trace.kept += rows * mix.grad  # the mask of image tokens
    if low.grad and (groups > 1 or not logits.grad):
        trace.keep(mix)
    if mix.grad:
        trace.keep(low)
    low = trace.pointwise("lora", (low, mix), rows * pairs * rank, low.grad or mix.grad)
    change = _flat_product(trace, f"{name}.lora_B", rows, low, (outer, pairs * rank))
    if low.grad:
        trace.kept += pairs * rank * outer * trace.width  # B of all pairs side by side is a copy
    return trace.pointwise("lora", (out, change), out.elements, out.grad or change.grad)


def _flat_product(trace: OpTrace, name: str, rows: int, x: TracedTensor, shape: Shape) -> TracedTensor:
    """``product`` with all groups' matrices (G, out, in) seen as one."""
    trains, flops = trace.use(name), 2 * rows * shape[0] * shape[1]
    out = trace.new(rows * shape[0], x.grad or trains)
    trace.note_product("lora", flops, shape[0] * shape[1] * trace.width + x.bytes + out.bytes, (x.grad, trains))
    if trains:
        trace.keep(x)
    return out


def _swiglu(trace: OpTrace, gate: TracedTensor, up: TracedTensor, part: str) -> TracedTensor:
    return trace.times(trace.activation(gate, part), up, part)


def _dense(trace: OpTrace, rows: int, name: str, x: TracedTensor, grouped: bool, part: str) -> TracedTensor:
    gate, up = (_adapted(trace, f"{name}.{p}_proj", rows, x, grouped) for p in ("gate", "up"))
    return _adapted(trace, f"{name}.down_proj", rows, _swiglu(trace, gate, up, part), grouped)


def _feed_forward(trace: OpTrace, model: TracedModel, rows: int, name: str, x: TracedTensor) -> TracedTensor:
    text = model.config.text_config
    if len(trace.shapes.get(f"{name}.gate_proj.weight", ())) == 3:
        x = _by_group(trace, "ffn", x)
        gate, up = (_set(trace, f"{name}.{p}_proj", rows, x) for p in ("gate", "up"))
        return _by_group(trace, "ffn", _set(trace, f"{name}.down_proj", rows, _swiglu(trace, gate, up, "ffn")))
    if text.ffn == "dense":
        return _dense(trace, rows, name, x, model.labelled, "ffn")
    wide = x if x.width == 4 else trace.new(x.elements, x.grad, 4)  # routers compute in float32
    if f"{name}.router.weight" in trace.shapes:
        detached = trace.new(x.elements, False, 4)
        detached.kept = wide.kept  # the same memory
        trace.product(f"{name}.router.weight", rows, detached, updated=_low_rank(trace, f"{name}.router"))
        wide.kept = detached.kept
    top_k = text.num_experts_per_tok
    weight = _expert_router(trace, f"{name}.gate", rows, wide, text.expert_groups, top_k)
    y = _experts(trace, f"{name}.experts", rows * top_k, rows, x, weight)
    if f"{name}.alpha" not in trace.shapes:
        return y
    if f"{name}.shared_expert.gate_up_proj" in trace.shapes:  # one per task, weighted by its alpha as experts are by the router
        alphas = trace.new(rows, trace.use(f"{name}.alpha"))
        shared = _experts(trace, f"{name}.shared_expert", rows, rows, x, alphas)
        return trace.pointwise("shared_expert", (y, shared), y.elements, y.grad or shared.grad)
    shared = _dense(trace, rows, f"{name}.shared_expert", x, True, "shared_expert")
    if alpha := trace.use(f"{name}.alpha"):
        trace.keep(shared)
    scaled = trace.pointwise("shared_expert", (shared,), shared.elements, shared.grad or alpha)
    return trace.pointwise("shared_expert", (y, scaled), y.elements, y.grad or scaled.grad)


def _low_rank(trace: OpTrace, name: str) -> bool:
    """``B A`` of a router, added to its weight; whether that trains."""
    if f"{name}.lora_A" not in trace.shapes:
        return False
    (groups, rank, inner), outer = trace.shapes[f"{name}.lora_A"], trace.shapes[f"{name}.lora_B"][1]
    trains = trace.use(f"{name}.lora_A"), trace.use(f"{name}.lora_B")
    trace.note_product("lora", 2 * groups * rank * inner * outer, 4 * groups * inner * (rank + outer), trains)
    return any(trains)


def _expert_router(trace: OpTrace, name: str, rows: int, x: TracedTensor, sizes: Sequence[int], top_k: int) -> TracedTensor:
    """Weights of the chosen experts, (rows, k) float32; keeps probabilities over a group of ``sizes``, choices and their sums."""
    updated = _low_rank(trace, name)
    flops, trains = 2 * rows * prod(trace.shapes[f"{name}.weight"]), trace.use(f"{name}.weight") or updated
    trace.note_product("expert_router", flops, x.bytes, (x.grad, trains))
    if trains:
        trace.keep(x)
    grad = x.grad or trains
    if grad:
        experts = max(sizes)
        places = 0 if len(sizes) == 1 else INDEX if len(set(sizes)) == 1 else experts * (2 + INDEX)  # with two masks
        trace.kept += rows * (4 * experts + 4 + INDEX * top_k + places)  # probabilities, sums, choices
    return trace.new(rows * top_k, grad, 4)


def _experts(trace: OpTrace, name: str, chosen: int, rows: int, x: TracedTensor, weight: TracedTensor) -> TracedTensor:
    """Stacked experts on rows sorted by expert; each row meets one of them."""
    part = part_of(f"{name}.down_proj")
    sorted_rows = trace.pointwise(part, (x,), chosen * (x.elements // rows), x.grad)
    trace.kept += chosen * INDEX * (x.grad or weight.grad) + rows * INDEX * x.grad * (chosen > rows)
    both = _routed(trace, f"{name}.gate_up", chosen, sorted_rows)
    if both.grad:
        trace.keep(both)
    inner = trace.pointwise(part, (both,), both.elements // 2, both.grad)
    out = _routed(trace, f"{name}.down", chosen, inner)
    picked = trace.new(chosen, weight.grad)
    if out.grad:
        trace.keep(picked)
    if weight.grad:
        trace.keep(out)
    weighted = trace.pointwise(part, (out,), out.elements, out.grad or weight.grad)
    trace.kept += chosen * INDEX * weighted.grad
    return trace.pointwise(part, (weighted,), x.elements, weighted.grad)


def _routed(trace: OpTrace, name: str, rows: int, x: TracedTensor) -> TracedTensor:
    out = trace.product(f"{name}_proj", rows, x, stacked=True)
    if f"{name}_lora_A" not in trace.shapes:
        return out
    low = trace.product(f"{name}_lora_A", rows, x, stacked=True)
    change = trace.product(f"{name}_lora_B", rows, low, stacked=True)
    return trace.pointwise("lora", (out, change), out.elements, out.grad or change.grad)
