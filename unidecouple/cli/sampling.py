"""Options that choose how tokens are sampled, the same in every command that has them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from unidecouple.bounds import cut
from unidecouple.cli.command import OWN
from unidecouple.generate.sampling import IMAGE_SAMPLING, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable

_HELP = {
    "guidance_scale": "scale of classifier-free guidance for images; 1 turns guidance off",
    "temperature": "sampling temperature; 0 is greedy",
    "top_k": "sample from the k most likely tokens; 0 means all",
    "top_p": "sample from the most likely tokens whose probabilities sum to this; 1 means all",
}


def add_sampling_options(
    command: argparse.ArgumentParser, *names: str, prefix: str = "", default: SamplingParams | None = None
) -> None:
    """Add an option for each of the fields ``names`` of ``SamplingParams``.

    Args:
        command: to add them to.
        names: fields.
        prefix: of the options' names, as in "image-temperature".
        default: what ``sampling_of`` gets, for the help; None stands for the checkpoint's own settings.
    """
    for name in names:
        used = f"{OWN} {getattr(IMAGE_SAMPLING, name):g}" if default is None else f"{getattr(default, name):g}"
        option = f"--{prefix}{name.replace('_', '-')}"
        command.add_argument(option, type=_reader(name), help=f"{_HELP[name]} (default: {used})")


def sampling_of(arguments: argparse.Namespace, default: SamplingParams, prefix: str = "") -> SamplingParams:
    """Return ``default`` with the options that were given."""
    names = vars(default)
    return default.override(**{name: getattr(arguments, f"{prefix.replace('-', '_')}{name}", None) for name in names})


def _reader(name: str) -> Callable[[str], float]:
    """Return a type of argparse's, whose range is that of ``SamplingParams``."""
    kind, what = (int, "whole number") if name == "top_k" else (float, "number")

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{cut(text)!r} is no {what}") from None
        try:
            SamplingParams().override(**{name: value})
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{cut(text)} {str(error).partition(' ')[2]}") from None
        return value

    return read
