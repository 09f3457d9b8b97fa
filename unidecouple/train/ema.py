"""An exponential moving average of the weights that training moves (Polyak averaging): ``ema <- d ema + (1 - d) w``.

Averaged weights score steadier than the last step's. d = 0.999 looks back over about 1 / (1 - d) = 1,000 steps, so a run of a
few hundred wants a smaller one. There is no warm-up and no correction: the average starts at the weights, not at zero.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from unidecouple.convert.weights import check_finite
from unidecouple.train.faults import naming_broken_file
from unidecouple.train.parallel import Parallel, local_rows

AVERAGES = "ema.safetensors"
_ENDING = "|ema"
"""After each name: torch's distributed reader takes all files of a folder together, and these names must not be the weights'."""


class EMA:
    """Float32 averages of every weight that any stage so far has trained; for other weights the average is the weight.

    A weight that is frozen again is still averaged, so that the result is the average of whole models.

    Args:
        decay: d, between 0 and 1; None keeps no averages.
        model: its weights, as the optimizer has them (whole, or this process's shards).
        parallel: the processes that share the run.
        checkpoint: what the averages continue from; None: they start at the weights, as averages of newly trained
            weights do.

    Raises:
        ValueError: the averages in ``checkpoint`` are missing or broken.
    """

    def __init__(self, decay: float | None, model: nn.Module, parallel: Parallel, checkpoint: Path | None) -> None:
        self.decay, self.weights, self.means = decay, dict[str, nn.Parameter](), dict[str, Tensor]()
        if decay is None:
            return
        saved: set[str] = set()
        if checkpoint is not None:
            with naming_broken_file(checkpoint / AVERAGES), safe_open(checkpoint / AVERAGES, framework="pt") as file:
                saved = {name.removesuffix(_ENDING) for name in list(file.keys())}
        self.weights = {name: w for name, w in model.named_parameters() if w.requires_grad or name in saved}
        self.means = {name: w.detach().to(torch.float32, copy=True) for name, w in self.weights.items()}
        if checkpoint is not None:
            with naming_broken_file(checkpoint / AVERAGES):
                parallel.load_tensors(checkpoint / AVERAGES, {name + _ENDING: self.means[name] for name in saved})

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages with the current weights. A weight equal to its average leaves it unchanged bit for bit."""
        if self.decay is None:
            return
        for name, weight in self.weights.items():
            mean, now = local_rows(self.means[name])[0], local_rows(weight)[0]  # DTensors have no lerp
            mean.lerp_(now.float(), 1 - self.decay)

    def tensors(self) -> dict[str, Tensor]:
        """What ``ema.safetensors`` holds."""
        return {name + _ENDING: mean for name, mean in self.means.items()}


@torch.no_grad()
def average(model: nn.Module, checkpoint: Path) -> None:
    """Give ``model``, loaded from ``checkpoint``, the averaged weights.

    Raises:
        ValueError: the run kept no averages, or they are broken, NaN or infinite.
    """
    if not (checkpoint / AVERAGES).is_file():
        raise ValueError(f"{checkpoint} has no {AVERAGES}: the run kept no averages. Set ema_decay (0.999, say) and train again")
    weights = dict(model.named_parameters())
    with naming_broken_file(checkpoint / AVERAGES):
        means = load_file(checkpoint / AVERAGES)
    check_finite(means, str(checkpoint / AVERAGES))
    for name, mean in means.items():
        weights[name.removesuffix(_ENDING)].copy_(mean)
