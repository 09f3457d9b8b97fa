"""The rules of the tape, by hand."""

from __future__ import annotations

from unidecouple.plan.tape import Tape

W = "lm_head.weight"


def linear(trains: bool, below: bool) -> Tape:
    tape = Tape({W: (5, 3)}, {W} if trains else set(), width=2)
    tape.linear("lm_head", 7, tape.new(7 * 3, below))
    return tape


def test_a_products_flops_and_what_it_keeps() -> None:
    one = 2 * 7 * 5 * 3
    for trains, below, products, kept in ((True, True, 2, 42), (True, False, 1, 42), (False, True, 1, 0), (False, False, 0, 0)):
        tape = linear(trains, below)
        assert (tape.flops(False), tape.flops(True), tape.kept) == (one, products * one, kept)
        assert tape.ops[0].moved == 2 * (15 + 21 + 35)
        assert tape.used == {W}


def test_stacked_rows_meet_one_matrix_each() -> None:
    name = "x.mlp.experts.down_proj"
    tape = Tape({name: (4, 5, 3)}, set(), width=4)
    out = tape.product(name, 7, tape.new(21, True), stacked=True)
    assert (tape.flops(False), tape.flops(True), out.elements) == (210, 210, 35)


def test_a_tensor_is_kept_once() -> None:
    tape = Tape({W: (5, 3)}, {W}, width=2)
    x = tape.new(21, True)
    for _ in range(3):
        tape.linear("lm_head", 7, x)
    assert tape.kept == 42


def test_attention_has_four_backward_products_or_fewer() -> None:
    square = 2 * 2 * 3 * 5 * 5 * 4  # 2 FLOPs, 2 sequences, 3 heads, 5 x 5 positions, width 4
    for grads, products in (((True, True, True), 4), ((False, False, True), 1), ((True, False, False), 2), ((False,) * 3, 0)):
        tape = Tape({}, set(), width=2)
        tape.attention(2, 3, 5, 4, tuple(tape.new(120, grad) for grad in grads))  # type: ignore[arg-type]
        assert tape.flops(False) == 2 * square
        assert tape.flops(True) == products * square
        assert tape.kept == (4 * 120 * 2 + 2 * 3 * 5 * 4 if products else 0)


def test_a_product_of_two_needs_the_other_side() -> None:
    tape = Tape({}, set(), width=4)
    a, b = tape.new(10, True), tape.new(10, False)
    assert tape.times(a, b, "ffn").grad
    assert (a.kept, b.kept) == (False, True)


def test_checkpoints_keep_inputs_and_one_layer() -> None:
    tape = Tape({W: (3, 3)}, {W}, width=2)
    x = tape.new(21, True)
    tape.kept = 5  # outside of layers
    for index in range(3):
        with tape.block(f"layer{index}", x):
            x = tape.linear("lm_head", 7, tape.activation(x, "ffn"))
    assert [(block.entry, block.kept) for block in tape.blocks] == [(42, 84)] * 3  # input of the activation, and its output
    assert tape.kept == 5 + 3 * 84
    assert tape.kept_by_checkpoints() == 5 + 3 * 42 + 84


def test_a_layer_without_gradients_keeps_nothing_by_checkpoint_either() -> None:
    tape = Tape({W: (3, 3)}, set(), width=2)
    with tape.block("frozen", x := tape.new(21, False)):
        tape.linear("lm_head", 7, x)
    assert tape.kept_by_checkpoints() == 0
