"""Packed rows attended in blocks, against a mask and against each sequence alone; what a mask excludes on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unidecouple.models.attention import SequenceBlocks, attend_in_blocks, masked_kernels

ROWS = ((5, 1, 8), (3, 7, 4))


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> tuple[Tensor, None]:
    out = F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2), None


def lengths_of(rows: Sequence[Sequence[int]]) -> list[int]:
    return [length for row in rows for length in row]


def test_blocks_of_similar_lengths() -> None:
    blocks = SequenceBlocks.of(lengths_of(ROWS), torch.device("cpu"))
    assert [tuple(block.shape) for block in blocks.places] == [(3, 8), (2, 4), (1, 1)]  # 8 7 5, then 4 3, then 1
    assert blocks.places[0][1].tolist() == [17, 18, 19, 20, 21, 22, 23, 23]  # the second row's 7 tokens, the last one twice
    together = torch.cat([block.flatten() for block in blocks.places])
    assert torch.equal(together[blocks.inverse], torch.arange(28))


def test_attention_in_blocks_is_each_sequence_s_own(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 14, 8, generator=generator).to(device).requires_grad_()
    key, value = (torch.randn(2, 2, 14, 8, generator=generator).to(device).requires_grad_() for _ in range(2))
    blocks = SequenceBlocks.of(lengths_of(ROWS), query.device)
    found, weights = attend_in_blocks(attend, blocks)(nn.Identity(), query, key, value, None, scaling=0.3)
    assert weights is None
    alone = []
    for row, lengths in enumerate(ROWS):
        parts = (part[row : row + 1].split(lengths, dim=2) for part in (query, key, value))
        alone.append(torch.cat([attend(nn.Identity(), *part, None, 0.3)[0] for part in zip(*parts, strict=True)], dim=1))
    expected = torch.cat(alone)
    torch.testing.assert_close(found, expected)
    projection = torch.randn(found.shape, generator=generator).to(device)
    wanted = torch.autograd.grad((expected * projection).sum(), (query, key, value))
    torch.testing.assert_close(torch.autograd.grad((found * projection).sum(), (query, key, value)), wanted)


@pytest.mark.parametrize("lengths", [[640] * 12, [576] * 4 + [40, 100, 300, 17, 9], [1] * 8 + [8]])
def test_packing_never_costs_more_than_padding(lengths: list[int]) -> None:
    blocks = SequenceBlocks.of(lengths, torch.device("cpu"))
    padded = len(lengths) * max(lengths) ** 2
    assert sum(len(block) * block.shape[1] ** 2 for block in blocks.places) <= padded
    if len(set(lengths)) == 1:
        assert padded * 12 == sum(lengths) ** 2  # what a mask over one row costs


def test_flops_of_a_packed_row_are_counted_by_torch() -> None:
    """Twelve sequences of 64: a mask over the row takes twelve times the products."""
    parts = [torch.randn(1, 2, 12 * 64, 8) for _ in range(3)]
    blocks = SequenceBlocks.of([64] * 12, torch.device("cpu"))

    def by_products(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
    ) -> tuple[Tensor, None]:
        return ((query @ key.mT * scaling).softmax(-1) @ value).transpose(1, 2), None  # torch's counter knows no fused one on a CPU

    counted = []
    for attended in (by_products, attend_in_blocks(by_products, blocks)):
        with FlopCounterMode(display=False) as counter:
            attended(nn.Identity(), *parts, None, scaling=1.0)
        counted.append(counter.get_total_flops())
    assert counted[0] == 12 * counted[1]


def test_cudnn_gets_no_mask() -> None:
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with masked_kernels(torch.device("cuda"), torch.zeros(1)):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
        assert torch.backends.cuda.math_sdp_enabled()
    for device, mask in (("cuda", None), ("cpu", torch.zeros(1))):
        with masked_kernels(torch.device(device), mask):
            assert torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled()
