"""Commands that take checkpoints elsewhere: other layouts and structures, small adapters."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from unidecouple.cli.command import OK, add, add_cache, add_group, number, recipes_and_overrides, say, whole

if TYPE_CHECKING:
    from unidecouple.cli.command import Commands

_MERGE_OPTIONS: Final[dict[str, tuple[str, Callable[[str], float]]]] = {
    "density": ("ties, doge: share of a weight's entries that is kept", number(0, 1)),
    "learning_rate": ("adamerging, concrete, doge: of Adam", number(above=0)),
    "inner_rate": ("concrete: of the coefficients within a step", number(above=0)),
    "temperature": ("concrete: of the masks", number(above=0)),
    "steps": ("adamerging, concrete, doge: steps", whole(0)),
    "adamerging_steps": ("concrete: steps of AdaMerging after the mask's", whole(0)),
    "batch_size": ("adamerging, concrete: samples per task and step", whole(1)),
    "samples": ("esm: per model", whole(1)),
    "exponent": ("esm: of the variances", number(0)),
}
"""Options of ``merge`` that are fields of methods, beside ``--scale``."""


def convert(arguments: argparse.Namespace) -> int:
    """Convert a checkpoint between the layouts of deepseek-ai, transformers and unidecouple, or to another structure."""
    from unidecouple import api
    from unidecouple.convert.options import shard_bytes, structure, task

    wanted = api.Conversion(
        arguments.to,
        structure(arguments),
        task(arguments.task),
        arguments.merge_lora,
        shard_bytes(arguments.max_shard_size),
        arguments.seed,
        arguments.image_size,
    )
    api.convert(arguments.checkpoint, arguments.output, conversion=wanted)
    return OK


def merge(arguments: argparse.Namespace) -> int:
    """Merge models that were fine-tuned from one base, each on another task, into one model."""
    from unidecouple import api
    from unidecouple.methods.merging.options import method_of

    method = method_of(arguments.method, {name: getattr(arguments, name) for name in ("scale", *_MERGE_OPTIONS)})
    recipes, overrides = recipes_and_overrides(arguments.recipe or [])
    options = api.MergeOptions(method=method, recipe=recipes, overrides=overrides, cache=arguments.cache)
    api.merge(arguments.base, arguments.tuned, arguments.output, options)
    return OK


def adapter_save(arguments: argparse.Namespace) -> int:
    """Save only what training changed in a base: LoRA and small modules, in PEFT's format if that can represent them."""
    from unidecouple.adapters.save import save

    if arguments.task is not None:
        from unidecouple.convert.options import task
        from unidecouple.delta.peft import save_peft

        chosen = task(arguments.task)
        assert chosen is not None
        save_peft(str(arguments.checkpoint), chosen, arguments.output, arguments.base, say)
        return OK
    wanted = (arguments.base, arguments.seed, arguments.with_experts)
    save(str(arguments.checkpoint), arguments.output, *wanted, say)
    return OK


def adapter_load(arguments: argparse.Namespace) -> int:
    """Rebuild the whole checkpoint, bit for bit, from its base and a saved adapter; or apply an adapter that PEFT wrote."""
    from unidecouple.adapters.load import write

    write(arguments.base, arguments.adapter, arguments.output, say, arguments.unmerged)
    return OK


def export(arguments: argparse.Namespace) -> int:
    """Copy the model of a checkpoint to a folder, without optimizer state and with the image tokenizer in half precision."""
    from unidecouple.train.export import export as copy

    print(copy(arguments.checkpoint, arguments.output, arguments.ema))
    return OK


def push(arguments: argparse.Namespace) -> int:
    """Upload a checkpoint with a model card to the Hugging Face Hub; optimizer state, logs and data are not uploaded."""
    from unidecouple import api

    if arguments.dry_run:
        from unidecouple.train.push import describe_upload

        for line in describe_upload(arguments.folder, arguments.repo_id, arguments.base_model):
            say(line)
        return OK
    private = True if arguments.private else None
    given = {"private": private, "base_model": arguments.base_model, "create_pr": arguments.create_pr}
    say(api.push_to_hub(arguments.folder, arguments.repo_id, **given))
    return OK


def add_commands(commands: Commands) -> None:
    """``unidecouple convert|merge|export|push`` and ``unidecouple adapter save|load``."""
    _add_convert(add(commands, convert, "convert"))
    _add_merge(add(commands, merge, "merge"))
    group = add_group(commands, "adapter", "Save what training changed as a small adapter, and rebuild the checkpoint from it.")
    _add_adapter(add(group, adapter_save, "save"), add(group, adapter_load, "load"))
    finished = add(commands, export, "export")
    finished.add_argument(
        "--ema", action="store_true", help="export the averaged weights of a run with ema_decay instead of those of the last step"
    )
    finished.add_argument("checkpoint", type=Path, help="folder of a checkpoint or of a training run")
    finished.add_argument("--output", type=Path, required=True, help="folder to write the result to")
    upload = add(commands, push, "push")
    upload.add_argument("folder", type=Path, help="folder of a checkpoint, an adapter or a training run")
    upload.add_argument("repo_id", metavar="REPO_ID", help="repository on the Hub, as owner/name; created if it does not exist")
    upload.add_argument("--private", action="store_true", help="create the repository as private (default: public)")
    upload.add_argument(
        "--base-model", metavar="ID", help="Hub id of the base model, for model card and adapter (default: the base of the run)"
    )
    upload.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    upload.add_argument("--dry-run", action="store_true", help="print the files and the model card, and upload nothing")


def _add_convert(command: argparse.ArgumentParser) -> None:
    command.add_argument("checkpoint", type=Path, help="folder of a checkpoint or of a training run")
    command.add_argument("--output", type=Path, required=True, help="folder to write the result to")
    layouts, structures = (
        ("unidecouple", "transformers", "deepseek"),
        ("dense", "moe", "ta_moe", "rosetta", "mot", "unifork", "unix"),
    )
    command.add_argument(
        "--to",
        choices=layouts,
        default=layouts[0],
        help="layout of the result; unidecouple is the layout to train from (default: unidecouple)",
    )
    command.add_argument("--structure", choices=structures, help="structure of the result, see docs/methods (default: unchanged)")
    _add_structure_options(command)
    command.add_argument(
        "--task",
        choices=("mmu", "t2i"),
        help="keep only the weights of this task; with --structure dense the result is an ordinary dense model",
    )
    command.add_argument("--merge-lora", action="store_true", help="merge LoRA into the weights (always done for other layouts)")
    command.add_argument("--max-shard-size", default="5GB", help="largest size of one file of weights (default: 5GB)")
    command.add_argument("--seed", type=whole(0), default=0, help="seed of newly initialised routers (default: 0)")
    command.add_argument(
        "--image-size", type=whole(1), help="Emu3: pixels per side of the square images (default: unchanged, or 720)"
    )


def _add_structure_options(command: argparse.ArgumentParser) -> None:
    """Fields of structures, each with the kinds that have it."""
    command.add_argument(
        "--experts-per-group", "--experts-per-task", type=whole(1), help="ta_moe: number of experts per task (default: 2)"
    )
    command.add_argument("--num-experts", type=whole(1), help="moe: number of experts (default: 4)")
    command.add_argument(
        "--num-experts-per-tok", type=whole(1), help="moe, ta_moe, rosetta: experts per token (default: 1; rosetta: 2)"
    )
    command.add_argument(
        "--no-shared-expert", dest="shared_expert", action="store_const", const=False, help="moe, ta_moe: no shared expert"
    )
    command.add_argument(
        "--shared-expert-per-task", action="store_const", const=True, help="ta_moe: one shared expert per task, not one for both"
    )
    command.add_argument("--alpha-init", type=number(), help="moe, ta_moe: initial weight of the shared expert (default: 0.5)")
    command.add_argument("--moe-layers", help="moe, ta_moe: layers that get experts, such as 0,4-7 (default: all)")
    command.add_argument(
        "--context-router",
        action="store_const",
        const=True,
        help="ta_moe: the task router of the first mixture layer also sees the previous tokens",
    )
    command.add_argument(
        "--group-by",
        "--split",
        choices=("modality", "task", "image_out"),
        help="mot: which tokens share a set of weights (default: modality)",
    )
    command.add_argument(
        "--fork", help="unifork: first layer of the task branches, as a number or as a fraction of the depth (default: 0.5)"
    )
    command.add_argument("--parts", help="mot: which weights are separate, such as ffn (default: attention,ffn,norms)")
    for end, share in (("first", "a third"), ("last", "a sixth")):
        command.add_argument(
            f"--{end}",
            help=f"unix: how many of the {end} layers are separate per modality, or their fraction of the depth (default: {share})",
        )
    command.add_argument(
        "--across", action="store_const", const=True, help="unix: let the separate layers attend to tokens of both modalities"
    )


def _scale(text: str) -> float | str:
    """Type of ``--scale``: a finite number, or "validation"."""
    from unidecouple.methods.merging.options import VALIDATION

    return text if text == VALIDATION else number()(text)


def _add_merge(command: argparse.ArgumentParser) -> None:
    command.add_argument("base", help="checkpoint that the models were fine-tuned from, or the name of a shipped base")
    command.add_argument("tuned", nargs="+", help="folders of the fine-tuned models or of their training runs")
    command.add_argument("--output", type=Path, required=True, help="folder to write the result to")
    kinds = ("task_arithmetic", "adamerging", "ties", "tsv_m", "doge", "concrete", "esm")
    command.add_argument("--method", choices=kinds, default="task_arithmetic", help="merging method (default: %(default)s)")
    command.add_argument(
        "--scale",
        type=_scale,
        help="coefficient of the merged change, or its initial value; validation: chosen on held-out data (default: the method's)",
    )
    command.add_argument(
        "--recipe", nargs="+", help="recipe and key=value overrides with the data, for methods that learn or choose"
    )
    for name, (what, kind) in _MERGE_OPTIONS.items():
        command.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"{what} (default: the method's)")
    add_cache(command)


def _add_adapter(save: argparse.ArgumentParser, load: argparse.ArgumentParser) -> None:
    save.add_argument("checkpoint", type=Path, help="folder of a checkpoint or of a training run")
    save.add_argument("--base", help="checkpoint that training started from (default: the base named in the run's run.yaml)")
    save.add_argument(
        "--seed",
        type=whole(0),
        help="seed that initialised the routers, if the base is dense (default: the seed in run.yaml, or 0)",
    )
    save.add_argument("--with-experts", action="store_true", help="also save experts that training changed, in full size")
    save.add_argument(
        "--task", choices=("mmu", "t2i"), help="save this task of a checkpoint written by `unidecouple decouple`, in PEFT's format"
    )
    load.add_argument("base", help="checkpoint that the adapter belongs to, or the name of a shipped base")
    load.add_argument("adapter", type=Path, help="folder written by `unidecouple adapter save` or by PEFT")
    load.add_argument(
        "--unmerged", action="store_true", help="keep PEFT's LoRA as separate weights, to continue training (default: merge it)"
    )
    for command in (save, load):
        command.add_argument("--output", type=Path, required=True, help="folder to write the result to")
