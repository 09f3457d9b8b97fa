"""The model's forward on a joint batch, operation by operation, on a ``Tape``. Follows ``models/`` and transformers' own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod

from unidecouple.batch import Task
from unidecouple.models.configuration import UniJanusConfig
from unidecouple.models.emu3 import UniEmu3Config
from unidecouple.models.families import UnifiedConfig
from unidecouple.plan.encoding import encoding
from unidecouple.plan.heads import head
from unidecouple.plan.load import Micro
from unidecouple.plan.tape import INDEX, Shape, Tape, Value

DECODER = "model.language_model"


def trace(
    config: UnifiedConfig,
    shapes: dict[str, Shape],
    trains: Collection[str],
    parts: Sequence[Micro],
    routing: str,
    width: int,
    tasks: Collection[Task] = tuple(Task),
) -> Tape:
    """The tape of one step's forward and backward over the micro-batches ``parts``.

    Args:
        config: of the model.
        shapes: of all its parameters.
        trains: names of those that train.
        parts: see ``Micro``.
        routing: "learned" or "label".
        width: bytes an activation, 4 or 2.
        tasks: whose losses are made.
    """
    tape = Tape(shapes, trains, width)
    for part in parts:
        hidden = _decoder(tape, config, part, _embed(tape, config, part), routing)
        for task in tasks:
            head(tape, task, part, hidden, config)
    return tape


def _embed(tape: Tape, config: UnifiedConfig, part: Micro) -> Value:
    rows, hidden = part.tokens, config.text_config.hidden_size
    if text := tape.use(f"{DECODER}.embed_tokens.weight"):
        tape.kept += rows * INDEX
    if isinstance(config, UniEmu3Config):
        if part.pictures:
            one = encoding(config.vq_config, config.image_size)
            tape.note("image_tokenizer", part.pictures * one.flops, part.pictures * one.moved, False)
            tape.encoding = max(tape.encoding, part.pictures * one.peak)
        return tape.pointwise("embeddings", (), rows * hidden, text)
    seen = _vision(tape, config, part.pictures) if part.pictures else None
    if coded := tape.use("model.generation_embeddings.weight"):
        tape.kept += rows * INDEX
    codes = tape.new(rows * config.vq_config.embed_dim, coded)
    drawn = _mlp(tape, "model.generation_aligner", rows, codes, "generation")  # at every position; the mask comes after
    if text or (seen is not None and seen.grad):
        tape.kept += rows * (seen is not None)  # the mask of placeholders
    grad = text or drawn.grad or (seen is not None and seen.grad)
    tape.kept += rows * grad  # the mask of image tokens
    return tape.pointwise("embeddings", (drawn, drawn), rows * hidden, grad)


def _vision(tape: Tape, config: UniJanusConfig, pictures: int) -> Value:
    vision, name = config.vision_config, "model.vision_model"
    rows, width = pictures * vision.num_image_tokens, vision.hidden_size
    pixels = tape.new(pictures * vision.num_channels * vision.image_size**2, False)
    x = tape.linear(f"{name}.embeddings.patch_embedding", rows, pixels)
    x.grad |= tape.use(f"{name}.embeddings.position_embedding.weight")
    x = tape.pointwise("vision", (x,), rows * width, x.grad)
    heads = vision.num_attention_heads
    for index in range(vision.num_hidden_layers):
        layer = f"{name}.encoder.layers.{index}"
        with tape.block(layer, x):
            normed = tape.layer_norm(f"{layer}.layer_norm1", rows, x, "vision")
            query, key, value = (tape.linear(f"{layer}.self_attn.{p}_proj", rows, normed) for p in "qkv")
            mixed = tape.attention(pictures, heads, vision.num_image_tokens, width // heads, (query, key, value))
            mixed = tape.linear(f"{layer}.self_attn.projection_layer", rows, mixed)
            x = tape.pointwise("vision", (x, mixed), x.elements, x.grad or mixed.grad)
            normed = tape.layer_norm(f"{layer}.layer_norm2", rows, x, "vision")
            inner = tape.activation(tape.linear(f"{layer}.mlp.fc1", rows, normed), "vision")
            out = tape.linear(f"{layer}.mlp.fc2", rows, inner)
            x = tape.pointwise("vision", (x, out), x.elements, x.grad or out.grad)
    x = tape.layer_norm(f"{name}.post_layernorm", rows, x, "vision")
    return _mlp(tape, "model.aligner", rows, x, "vision")


def _mlp(tape: Tape, name: str, rows: int, x: Value, part: str) -> Value:
    x, index = tape.linear(f"{name}.fc1", rows, x), 0
    while f"{name}.hidden_layers.{index}.weight" in tape.shapes:
        x, index = tape.linear(f"{name}.hidden_layers.{index}", rows, tape.activation(x, part)), index + 1
    return x


def _decoder(tape: Tape, config: UnifiedConfig, part: Micro, x: Value, routing: str) -> Value:
    text, rows = config.text_config, part.tokens
    turn = tape.new(2 * part.length * text.head_dim, False)  # cosines and sines of the positions, one tensor for all layers
    if text.context_router:
        _context_router(tape, config, part, turn)
    known = routing == "label" or text.context_router or text.labelled_lora  # whether the first layer's attention is told the group
    for index in range(text.num_hidden_layers):
        layer = f"{DECODER}.layers.{index}"
        with tape.block(layer, x):
            normed = tape.rms_norm(f"{layer}.input_layernorm", rows, x)
            mixed = _attention(tape, config, part, f"{layer}.self_attn", normed, turn, known or index > 0)
            x = tape.pointwise("attention", (x, mixed), x.elements, x.grad or mixed.grad)
            normed = tape.rms_norm(f"{layer}.post_attention_layernorm", rows, x)
            out = _feed_forward(tape, config, rows, f"{layer}.mlp", normed, known)
            x = tape.pointwise("ffn", (x, out), x.elements, x.grad or out.grad)
    return tape.rms_norm(f"{DECODER}.norm", rows, x)


def _attention(tape: Tape, config: UnifiedConfig, part: Micro, name: str, x: Value, turn: Value, grouped: bool) -> Value:
    text, rows = config.text_config, part.tokens
    untied = len(tape.shapes[f"{name}.q_proj.weight"]) == 3
    if untied:
        sorted_rows = _by_group(tape, "attention", rows, x)
        query, key, value = (_by_group(tape, "attention", rows, _set(tape, f"{name}.{p}_proj", rows, sorted_rows)) for p in "qkv")
    else:
        query, key, value = (_adapted(tape, f"{name}.{p}_proj", rows, x, grouped) for p in "qkv")
    if query.grad or key.grad:
        tape.keep(turn)
    query, key = (tape.pointwise("attention", (v, v), v.elements, v.grad) for v in (query, key))  # rotated
    mixed = tape.attention(part.samples, text.num_attention_heads, part.length, text.head_dim, (query, key, value))
    if untied:
        if text.per_group_attention == "group":
            tape.kept += part.samples * part.length**2 * tape.width * mixed.grad  # the mask, as the kernel adds it to the scores
        sorted_rows = _by_group(tape, "attention", rows, mixed)
        return _by_group(tape, "attention", rows, _set(tape, f"{name}.o_proj", rows, sorted_rows))
    return _adapted(tape, f"{name}.o_proj", rows, mixed, grouped)


def _by_group(tape: Tape, part: str, rows: int, x: Value) -> Value:
    """Tokens laid side by side by group, or back; the way back keeps where each stands."""
    tape.kept += rows * INDEX * x.grad
    return tape.pointwise(part, (x,), x.elements, x.grad)


def _set(tape: Tape, name: str, rows: int, x: Value) -> Value:
    """An ``UntiedLinear`` on sorted rows: each row meets one of its matrices."""
    out = tape.product(f"{name}.weight", rows, x, stacked=True)
    out.grad |= tape.use(f"{name}.bias")
    return out


def _context_router(tape: Tape, config: UnifiedConfig, part: Micro, turn: Value) -> None:
    text, rows, name = config.text_config, part.tokens, f"{DECODER}.context_router"
    x = tape.pointwise("task_router", (), rows * text.hidden_size, False)
    query, key, value = (tape.linear(f"{name}.attention.{p}_proj", rows, x) for p in "qkv")
    if query.grad or key.grad:
        tape.keep(turn)
    query, key = (tape.pointwise("task_router", (v, v), v.elements, v.grad) for v in (query, key))
    mixed = tape.attention(part.samples, 1, part.length, text.head_dim, (query, key, value))
    seen = tape.linear(f"{name}.attention.o_proj", rows, mixed)
    tape.product(f"{name}.weight", rows, tape.pointwise("task_router", (x, seen), x.elements, seen.grad))


def _adapted(tape: Tape, name: str, rows: int, x: Value, grouped: bool) -> Value:
    """A ``LoraLinear``; with one pair a task it needs the token's group, else its update is left out."""
    out = tape.linear(name, rows, x)
    if f"{name}.lora_A" not in tape.shapes:
        return out
    groups, rank, inner = tape.shapes[f"{name}.lora_A"]
    if groups > 1 and not grouped:
        return out
    outer = tape.shapes[f"{name}.lora_B"][1]
    low = _flat_product(tape, f"{name}.lora_A", rows, x, (groups * rank, inner))
    if groups > 1:
        low = tape.times(low, tape.new(rows * groups, False), "lora")
    change = _flat_product(tape, f"{name}.lora_B", rows, low, (outer, groups * rank))
    if groups > 1 and low.grad:
        tape.kept += groups * rank * outer * tape.width  # B of all groups side by side is a copy
    return tape.pointwise("lora", (out, change), out.elements, out.grad or change.grad)


def _flat_product(tape: Tape, name: str, rows: int, x: Value, shape: Shape) -> Value:
    """``product`` with all groups' matrices (G, out, in) seen as one."""
    trains, flops = tape.use(name), 2 * rows * shape[0] * shape[1]
    out = tape.new(rows * shape[0], x.grad or trains)
    moved = shape[0] * shape[1] * tape.width + x.bytes + out.bytes
    for backward, needed in ((False, True), (True, x.grad), (True, trains)):
        if needed:
            tape.note("lora", flops, moved, backward)
    if trains:
        tape.keep(x)
    return out


def _swiglu(tape: Tape, gate: Value, up: Value, part: str) -> Value:
    return tape.times(tape.activation(gate, part), up, part)


def _dense(tape: Tape, rows: int, name: str, x: Value, grouped: bool, part: str) -> Value:
    gate, up = (_adapted(tape, f"{name}.{p}_proj", rows, x, grouped) for p in ("gate", "up"))
    return _adapted(tape, f"{name}.down_proj", rows, _swiglu(tape, gate, up, part), grouped)


def _feed_forward(tape: Tape, config: UnifiedConfig, rows: int, name: str, x: Value, known: bool) -> Value:
    text = config.text_config
    if len(tape.shapes.get(f"{name}.gate_proj.weight", ())) == 3:
        x = _by_group(tape, "ffn", rows, x)
        gate, up = (_set(tape, f"{name}.{p}_proj", rows, x) for p in ("gate", "up"))
        return _by_group(tape, "ffn", rows, _set(tape, f"{name}.down_proj", rows, _swiglu(tape, gate, up, "ffn")))
    if text.ffn == "dense":
        return _dense(tape, rows, name, x, known, "ffn")
    wide = x if x.width == 4 else tape.new(x.elements, x.grad, 4)  # routers compute in float32
    if f"{name}.router.weight" in tape.shapes:
        detached = tape.new(x.elements, False, 4)
        detached.kept = wide.kept  # the same memory
        tape.product(f"{name}.router.weight", rows, detached, updated=_low_rank(tape, f"{name}.router"))
        wide.kept = detached.kept
    top_k = text.num_experts_per_tok
    weight = _expert_router(tape, f"{name}.gate", rows, wide, max(text.expert_groups), top_k)
    y = _experts(tape, f"{name}.experts", rows * top_k, rows, x, weight)
    if f"{name}.alpha" not in tape.shapes:
        return y
    shared = _dense(tape, rows, f"{name}.shared_expert", x, True, "shared_expert")
    if alpha := tape.use(f"{name}.alpha"):
        tape.keep(shared)
    scaled = tape.pointwise("shared_expert", (shared,), shared.elements, shared.grad or alpha)
    return tape.pointwise("shared_expert", (y, scaled), y.elements, y.grad or scaled.grad)


def _low_rank(tape: Tape, name: str) -> bool:
    """``B A`` of a router, added to its weight; whether that trains."""
    if f"{name}.lora_A" not in tape.shapes:
        return False
    (groups, rank, inner), outer = tape.shapes[f"{name}.lora_A"], tape.shapes[f"{name}.lora_B"][1]
    trains = [tape.use(f"{name}.{pair}") for pair in ("lora_A", "lora_B")]
    flops, moved = 2 * groups * rank * inner * outer, 4 * groups * inner * (rank + outer)
    for backward, needed in ((False, True), *((True, moving) for moving in trains)):
        if needed:
            tape.note("lora", flops, moved, backward)
    return any(trains)


def _expert_router(tape: Tape, name: str, rows: int, x: Value, experts: int, top_k: int) -> Value:
    """Weights of the chosen experts, (rows, k) float32; keeps probabilities over ``experts``, choices and their sums."""
    updated = _low_rank(tape, name)
    flops, trains = 2 * rows * prod(tape.shapes[f"{name}.weight"]), tape.use(f"{name}.weight") or updated
    for backward, needed in ((False, True), (True, x.grad), (True, trains)):
        if needed:
            tape.note("expert_router", flops, x.bytes, backward)
    if trains:
        tape.keep(x)
    grad = x.grad or trains
    if grad:
        tape.kept += rows * (4 * experts + experts + 4 + INDEX * (experts + top_k))  # probabilities, mask, sums, places
    return tape.new(rows * top_k, grad, 4)


def _experts(tape: Tape, name: str, chosen: int, rows: int, x: Value, weight: Value) -> Value:
    """Stacked experts on rows sorted by expert; each row meets one of them."""
    sorted_rows = tape.pointwise("experts", (x,), chosen * (x.elements // rows), x.grad)
    tape.kept += chosen * INDEX * (x.grad + weight.grad)
    both = _routed(tape, f"{name}.gate_up", chosen, sorted_rows)
    if both.grad:
        tape.keep(both)  # SiLU keeps a view of its first half, the product one of its second
    silu = tape.pointwise("experts", (both,), both.elements // 2, both.grad)
    if both.grad:
        tape.keep(silu)
    inner = tape.pointwise("experts", (both, silu), both.elements // 2, both.grad)
    out = _routed(tape, f"{name}.down", chosen, inner)
    picked = tape.new(chosen, weight.grad)
    if out.grad:
        tape.keep(picked)
    if weight.grad:
        tape.keep(out)
    weighted = tape.pointwise("experts", (out,), out.elements, out.grad or weight.grad)
    if weighted.grad:
        tape.keep(weighted)  # index_add keeps its source, for its shape alone
        tape.kept += chosen * INDEX
    return tape.pointwise("experts", (weighted,), x.elements, weighted.grad)


def _routed(tape: Tape, name: str, rows: int, x: Value) -> Value:
    out = tape.product(f"{name}_proj", rows, x, stacked=True)
    if f"{name}_lora_A" not in tape.shapes:
        return out
    low = tape.product(f"{name}_lora_A", rows, x, stacked=True)
    change = tape.product(f"{name}_lora_B", rows, low, stacked=True)
    return tape.pointwise("lora", (out, change), out.elements, out.grad or change.grad)
