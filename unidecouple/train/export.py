"""Copies of a checkpoint's model for use, without what training needs."""

from __future__ import annotations

from pathlib import Path

from unidecouple.convert.licences import carry_licences
from unidecouple.convert.load import checkpoint_folder, load
from unidecouple.convert.weights import check_finite
from unidecouple.files import atomic_directory
from unidecouple.models.base import UnifiedModel
from unidecouple.models.processing import UnifiedProcessor
from unidecouple.models.shipped import located
from unidecouple.ownership import check_directory
from unidecouple.train.ema import average


def export(checkpoint: Path, folder: Path, ema: bool = False) -> Path:
    """Write the model and processor of ``checkpoint`` to ``folder``, its frozen tokenizer, most of the bytes, in float16.

    With ``ema`` the weights are the averages that the run kept beside them.

    Raises:
        ValueError: there are none.
    """
    source = source_of_copy(checkpoint, folder)
    model, processor = load(str(checkpoint))
    if ema:
        average(model, source)
    model.model.vqmodel.half()
    check_finite(dict(model.state_dict()), f"{source}, its image tokenizer in float16,")
    return write_copy(model, processor, folder, source)


def source_of_copy(checkpoint: Path, folder: Path) -> Path:
    """Return the checkpoint's own folder, after making sure that ``folder`` may be written."""
    source = checkpoint_folder(str(checkpoint))
    check_directory(folder, (located(str(checkpoint)), source))
    return source


def write_copy(model: UnifiedModel, processor: UnifiedProcessor, folder: Path, source: Path) -> Path:
    """Write ``model`` and ``processor`` to ``folder`` with the licences of ``source``, and return it."""
    with atomic_directory(folder, (source,)) as staging:
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        carry_licences(source, staging)
    return folder
