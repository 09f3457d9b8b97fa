"""What the device can do at best, and which layout and attention kernel decoding should use."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_check.check import ROOT, Check
from benchmarks.record import PACKAGES, commit

COMMIT = ROOT / "build" / "gpu" / "commit"
"""What the bundle knows of its commit; a bundle has no git."""


def run(check: Check) -> None:
    """Versions, copy bandwidth and the rate of a bf16 matrix product."""
    check.add(
        "environment",
        versions={name: version(name) for name in PACKAGES if name != "unidecouple"},
        commit=commit() or (COMMIT.read_text().strip() if COMMIT.is_file() else ""),
        device=torch.cuda.get_device_name() if check.cuda else "cpu",
        memory_gb=torch.cuda.mem_get_info()[1] / 1e9 if check.cuda else None,
        cudnn=torch.backends.cudnn.version(),
    )
    source, target = torch.empty(2, 1 << (16 if check.tiny else 31), dtype=torch.uint8, device=check.device).unbind()
    check.add("copy, read and written", 2 * len(source) / check.timed(partial(target.copy_, source)) / 1e12, "TB/s")
    del source, target
    size = 64 if check.tiny else 8192
    x, w = torch.randn(2, size, size, device=check.device, dtype=torch.bfloat16).unbind()
    check.add(f"bf16 product of {size} x {size}", 2 * size**3 / check.timed(partial(x.mm, w)) / 1e12, "TFLOP/s")


def kernels(check: Check) -> None:
    """Decoding's layout of matrices and kernels of attention, which were chosen on a CPU."""
    with check.attempt("layout"):
        _layout(check)
    heads, width, keys = (2, 16, 64) if check.tiny else (16, 128, 640)
    for rows in (2, 32, 256):
        with check.attempt(f"attention of {rows} rows"):
            _attention(check, (rows, heads, keys, width))


def _layout(check: Check) -> None:
    hidden, wide = (64, 128) if check.tiny else (2048, 11264)
    # as many matrices as a model has layers, so that none stays in the cache
    inputs_first = [torch.randn(hidden, wide, device=check.device, dtype=torch.bfloat16) for _ in range(24)]
    outputs_first = [w.t().contiguous() for w in inputs_first]
    for rows in (2, 8, 32, 256):
        x = torch.randn(rows, hidden, device=check.device, dtype=torch.bfloat16)
        ours = check.timed(lambda x=x: [x.mm(w) for w in inputs_first]) / 24  # type: ignore[misc]
        linear = check.timed(lambda x=x: [F.linear(x, w) for w in outputs_first]) / 24  # type: ignore[misc]
        rate = 2 * hidden * wide / min(ours, linear) / 1e12
        check.add(f"layout, {rows} rows: outputs first / inputs first", linear / ours, "x", us=ours * 1e6, tb_per_s=rate)


def _attention(check: Check, shape: tuple[int, int, int, int]) -> None:
    rows, heads, keys, width = shape
    query = torch.randn(rows, heads, 1, width, device=check.device, dtype=torch.bfloat16)
    key, value = torch.randn(2, rows, heads, keys, width, device=check.device, dtype=torch.bfloat16).unbind()
    mask = torch.zeros(rows, 1, 1, keys, device=check.device, dtype=torch.bfloat16)
    masked = partial(F.scaled_dot_product_attention, query, key, value, mask)
    for name, call in (("mask", masked), ("no mask", partial(F.scaled_dot_product_attention, query, key, value))):
        check.add(f"attention, {rows} rows, {name}", check.timed(call, 20) * 1e6, "us", kernels=check.kernels(call, 3)["top"])
    for backend in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION) if check.cuda else (SDPBackend.MATH,):
        with check.attempt(f"attention, {rows} rows, {backend.name}"), sdpa_kernel(backend):
            check.add(f"attention, {rows} rows, mask, {backend.name}", check.timed(masked, 20) * 1e6, "us")
