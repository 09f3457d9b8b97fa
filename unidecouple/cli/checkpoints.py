"""Commands that take checkpoints elsewhere: other layouts and structures, small adapters."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from unidecouple.cli.command import OK, add, add_group, number, recipes_and_overrides, say, whole

if TYPE_CHECKING:
    from unidecouple.cli.command import Commands


def convert(arguments: argparse.Namespace) -> int:
    """Copy a checkpoint between deepseek-ai's layout, transformers' and ours, with another structure if asked."""
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
    """Merge models that were fine-tuned from one base, each on a task of its own, into one."""
    from unidecouple import api
    from unidecouple.methods.merging import AdaMerging, Merging, TaskArithmetic

    method: Merging = TaskArithmetic(scale=arguments.scale)
    if arguments.method == "adamerging":
        method = AdaMerging("adamerging", arguments.scale, arguments.learning_rate, arguments.steps, arguments.batch_size)
    recipes, overrides = recipes_and_overrides(arguments.recipe or [])
    options = api.MergeOptions(method=method, recipe=recipes, overrides=overrides, cache=arguments.cache)
    api.merge(arguments.base, arguments.tuned, arguments.output, options)
    return OK


def adapter_save(arguments: argparse.Namespace) -> int:
    """Save only what training changed beyond a base: low-rank updates and small parts, in PEFT's format where it can hold them."""
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
    """Rebuild the whole checkpoint from its base and a saved adapter, bit for bit; or apply an adapter that PEFT wrote."""
    from unidecouple.adapters.load import write

    write(arguments.base, arguments.adapter, arguments.output, say, arguments.unmerged)
    return OK


def export(arguments: argparse.Namespace) -> int:
    """Copy a checkpoint's model to a folder, its frozen tokenizer in half precision, as the shipped bases are."""
    from unidecouple.train.export import export as copy

    print(copy(arguments.checkpoint, arguments.output, arguments.ema))
    return OK


def push(arguments: argparse.Namespace) -> int:
    """Upload a checkpoint with a model card to the Hugging Face Hub; optimizer, logs and data stay here."""
    from unidecouple.train.push import push_to_hub

    private = True if arguments.private else None
    given = {"private": private, "base_model": arguments.base_model, "create_pr": arguments.create_pr}
    say(push_to_hub(arguments.folder, arguments.repo_id, **given))
    return OK


def add_commands(commands: Commands) -> None:
    """``unidecouple convert|merge|export|push`` and ``unidecouple adapter save|load``."""
    _add_convert(add(commands, convert, "convert"))
    _add_merge(add(commands, merge, "merge"))
    group = add_group(commands, "adapter", "Save what training changed as a small adapter, and rebuild the checkpoint from it.")
    _add_adapter(add(group, adapter_save, "save"), add(group, adapter_load, "load"))
    finished = add(commands, export, "export")
    finished.add_argument("--ema", action="store_true", help="the averaged weights (of a run with ema_decay), not the last step's")
    finished.add_argument("checkpoint", type=Path, help="folder of the checkpoint, or of a run")
    finished.add_argument("--output", type=Path, required=True, help="folder to write")
    upload = add(commands, push, "push")
    upload.add_argument("folder", type=Path, help="folder of a checkpoint, of an adapter, or of a run")
    upload.add_argument("repo_id", metavar="REPO_ID", help="repository on the Hub, as owner/name; made if it is not there")
    upload.add_argument("--private", action="store_true", help="make a new repository private (default: as the Hub does, public)")
    upload.add_argument("--base-model", metavar="ID", help="base model's id on the Hub, for the card (default: the run's)")
    upload.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")


def _add_convert(command: argparse.ArgumentParser) -> None:
    command.add_argument("checkpoint", type=Path, help="folder of the checkpoint, or of a run")
    command.add_argument("--output", type=Path, required=True, help="folder to write")
    layouts, structures = (
        ("unidecouple", "transformers", "deepseek"),
        ("dense", "moe", "ta_moe", "rosetta", "mot", "unifork", "unix"),
    )
    command.add_argument("--to", choices=layouts, default=layouts[0], help="layout of the result (default: unidecouple)")
    command.add_argument("--structure", choices=structures, help="structure of the result (default: as it is)")
    command.add_argument(
        "--experts-per-group", "--experts-per-task", type=whole(1), help="experts per task of a new ta_moe (default: 2)"
    )
    command.add_argument("--num-experts", type=whole(1), help="experts of a new moe (default: 4)")
    command.add_argument("--num-experts-per-tok", type=whole(1), help="experts a token is sent to (default: 1, of rosetta 2)")
    command.add_argument(
        "--no-shared-expert", dest="shared_expert", action="store_const", const=False, help="a new mixture without a shared expert"
    )
    command.add_argument(
        "--shared-expert-per-task", action="store_const", const=True, help="one shared expert per task of a new ta_moe"
    )
    command.add_argument("--alpha-init", type=number(), help="weight of the shared expert at the start (default: 0.5)")
    command.add_argument("--moe-layers", help="layers that become mixtures, as 0,4-7 (default: all)")
    command.add_argument(
        "--context-router", action="store_const", const=True, help="the first mixture's task router looks at the tokens before"
    )
    command.add_argument(
        "--group-by", "--split", choices=("modality", "task", "image_out"), help="groups of mot's sets (default: modality)"
    )
    command.add_argument("--parts", help="what mot unties, as ffn or attention,norms (default: attention,ffn,norms)")
    command.add_argument("--fork", help="first layer of unifork's branches, or the share of the depth before it (default: 0.5)")
    for end, share in (("first", "a third"), ("last", "a sixth")):
        command.add_argument(f"--{end}", help=f"{end} layers that unix unties, or their share of the depth (default: {share})")
    command.add_argument("--across", action="store_const", const=True, help="in unix's parted layers, too, attend to all tokens")
    command.add_argument("--task", choices=("mmu", "t2i"), help="keep only what serves this task; --structure dense then folds it")
    command.add_argument("--merge-lora", action="store_true", help="add low-rank updates to their weights (other layouts: always)")
    command.add_argument("--max-shard-size", default="5GB", help="most bytes of one file of weights (default: 5GB)")
    command.add_argument("--seed", type=whole(0), default=0, help="of new routers (default: 0)")
    command.add_argument("--image-size", type=whole(1), help="pixels per side of an Emu3's images (default: as they are, or 720)")


def _add_merge(command: argparse.ArgumentParser) -> None:
    command.add_argument("base", help="checkpoint that the models were fine-tuned from, or a shipped base's name")
    command.add_argument("tuned", nargs="+", help="folders of the models, or of their runs")
    command.add_argument("--output", type=Path, required=True, help="folder to write")
    command.add_argument(
        "--method", choices=("task_arithmetic", "adamerging"), default="task_arithmetic", help="how (default: %(default)s)"
    )
    command.add_argument(
        "--scale", type=number(), default=0.3, help="coefficient of every model, or where it starts (default: 0.3)"
    )
    command.add_argument("--recipe", nargs="+", help="adamerging: recipes and key=value overrides, whose data are the inputs")
    command.add_argument(
        "--learning-rate", type=number(above=0), default=1e-3, help="adamerging: of the coefficients (default: 0.001)"
    )
    command.add_argument("--steps", type=whole(1), default=500, help="adamerging: steps of learning (default: 500)")
    command.add_argument("--batch-size", type=whole(1), default=16, help="adamerging: samples per task and step (default: 16)")
    command.add_argument(
        "--cache", type=Path, default=Path("runs/cache"), help="folder of generated and encoded data (default: runs/cache)"
    )


def _add_adapter(save: argparse.ArgumentParser, load: argparse.ArgumentParser) -> None:
    save.add_argument("checkpoint", type=Path, help="folder of the checkpoint, or of a run")
    save.add_argument("--base", help="checkpoint it was trained from (default: what the run's run.yaml says)")
    save.add_argument("--seed", type=whole(0), help="the run's, for a dense base's routers (default: run.yaml's, or 0)")
    save.add_argument("--with-experts", action="store_true", help="keep experts that training changed, in full")
    save.add_argument(
        "--task", choices=("mmu", "t2i"), help="of a checkpoint that `unidecouple decouple` wrote: this task, in PEFT's format"
    )
    load.add_argument("base", help="checkpoint that the adapter belongs to, or a shipped base's name")
    load.add_argument("adapter", type=Path, help="folder that `unidecouple adapter save` or PEFT wrote")
    load.add_argument("--unmerged", action="store_true", help="keep PEFT's updates as low-rank weights, to train on")
    for command in (save, load):
        command.add_argument("--output", type=Path, required=True, help="folder to write")
