"""The rules of the trace, by hand."""

from __future__ import annotations

from unidecouple.plan.op_trace import OpTrace

W = "lm_head.weight"


def linear(trains: bool, below: bool) -> OpTrace:
    trace = OpTrace({W: (5, 3)}, {W} if trains else set(), width=2)
    trace.linear("lm_head", 7, trace.new(7 * 3, below))
    return trace


def test_a_products_flops_and_what_it_keeps() -> None:
    one = 2 * 7 * 5 * 3
    for trains, below, products, kept in ((True, True, 2, 42), (True, False, 1, 42), (False, True, 1, 0), (False, False, 0, 0)):
        trace = linear(trains, below)
        assert (trace.flops(False), trace.flops(True), trace.kept) == (one, products * one, kept)
        assert trace.ops[0].moved == 2 * (15 + 21 + 35)
        assert trace.used == {W}


def test_stacked_rows_meet_one_matrix_each() -> None:
    name = "x.mlp.experts.down_proj"
    trace = OpTrace({name: (4, 5, 3)}, set(), width=4)
    out = trace.product(name, 7, trace.new(21, True), stacked=True)
    assert (trace.flops(False), trace.flops(True), out.elements) == (210, 210, 35)


def test_a_tensor_is_kept_once() -> None:
    trace = OpTrace({W: (5, 3)}, {W}, width=2)
    x = trace.new(21, True)
    for _ in range(3):
        trace.linear("lm_head", 7, x)
    assert trace.kept == 42


def test_attention_has_four_backward_products_or_fewer() -> None:
    square = 2 * 2 * 3 * 5 * 5 * 4  # 2 FLOPs, 2 sequences, 3 heads, 5 x 5 positions, width 4
    for grads, products in (((True, True, True), 4), ((False, False, True), 1), ((True, False, False), 2), ((False,) * 3, 0)):
        trace = OpTrace({}, set(), width=2)
        trace.attention(2, 3, 5, 4, tuple(trace.new(120, grad) for grad in grads))  # type: ignore[arg-type]
        assert trace.flops(False) == 2 * square
        assert trace.flops(True) == products * square
        assert trace.kept == (4 * 120 * 2 + 2 * 3 * 5 * 4 if products else 0)


def test_a_product_of_two_needs_the_other_side() -> None:
    trace = OpTrace({}, set(), width=4)
    a, b = trace.new(10, True), trace.new(10, False)
    assert trace.times(a, b, "ffn").grad
    assert (a.kept, b.kept) == (False, True)


def test_checkpoints_keep_inputs_and_one_layer() -> None:
    trace = OpTrace({W: (3, 3)}, {W}, width=2)
    x = trace.new(21, True)
    trace.kept = 5  # outside of layers
    for index in range(3):
        with trace.block(f"layer{index}", x):
            x = trace.linear("lm_head", 7, trace.activation(x, "ffn"))
    assert [(block.entry, block.kept) for block in trace.blocks] == [(42, 84)] * 3  # input of the activation, and its output
    assert trace.kept == 5 + 3 * 84
    assert trace.kept_by_checkpoints() == 5 + 3 * 42 + 84


def test_a_layer_without_gradients_keeps_nothing_by_checkpoint_either() -> None:
    trace = OpTrace({W: (3, 3)}, set(), width=2)
    with trace.block("frozen", x := trace.new(21, False)):
        trace.linear("lm_head", 7, x)
    assert trace.kept_by_checkpoints() == 0
