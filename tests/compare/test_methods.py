"""Every method of every family takes a step of each stage from a checkpoint as it is published."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest

from own_data import asked, flat, write_jsonl, write_pictures
from published import write_published
from step_settings import UnsavedTrainer, run_stages
from tiny_emu3 import write_emu3
from unidecouple import config
from unidecouple.compare.grid import Comparison
from unidecouple.compare.methods import FOLDERS, Family, family_of, family_recipe, find_method, methods, run_values
from unidecouple.config.packaged import recipes_folder
from unidecouple.convert.load import load
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.models.base import UnifiedModel
from unidecouple.models.processing import UnifiedProcessor
from unidecouple.run import RunConfig
from unidecouple.source import data_source
from unidecouple.train.build import apply_structure

FAST = {"janus-dense_joint", "janus-unidecouple", "janus-rosetta", "emu3-lora_task", "emu3-mot_task", "emu3-pcgrad"}
CASES = [
    pytest.param(family, name, marks=() if f"{family}-{name}" in FAST else pytest.mark.slow, id=f"{family}-{name}")
    for family in FOLDERS
    for name, variant in methods(family).items()
    if not variant.parents
]
DOCUMENTED = Path(__file__).parents[2] / "docs" / "methods"
WRITE = {"janus": write_published, "emu3": write_emu3}
SIZES = ["data.max_length=256", "logging_steps=1", "save_steps=0", "diagnose=false", "bf16=false", "device=cpu"]
SIZES += ["evaluation.eval_steps=0"]

Loaded = tuple[Path, UnifiedModel, UnifiedProcessor]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Loaded]:
    folder = tmp_path_factory.mktemp("published")
    write_pictures(folder, "a.png", "b.png")
    write_jsonl(folder / "train.jsonl", [asked("a.png", "What is this?", "A cat."), flat("b.png", "a red cat")])
    made: dict[Family, Loaded] = {}
    for family in FOLDERS:
        place = folder / family
        WRITE[family](place)
        made[family] = (place, *load(str(place)))
    return made


def run_of(family: Family, name: str, data: Path) -> RunConfig:
    variant = methods(family)[name]
    sizes = [f"data.{key}_batch_size={2 if variant.tasks in ('both', key) else 0}" for key in ("mmu", "t2i")]
    files = [f"data.sources=[{{path: {data}}}]", "data.validation=[]"]
    loaded = config.load(RunConfig, [family_recipe(family, "data")], [*SIZES, *sizes, *files], [(name, run_values(name, variant))])
    return replace(loaded, stages=tuple(replace(stage, share=1.0) for stage in loaded.stages), max_steps=len(loaded.stages))


@pytest.mark.parametrize(("family", "name"), CASES)
def test_a_method_takes_a_step_of_each_stage(family: Family, name: str, bases: dict[Family, Loaded], tmp_path: Path) -> None:
    place, model, processor = bases[family]
    run = run_of(family, name, place.parent / "train.jsonl")
    model = copy.deepcopy(model)
    source = data_source(run).open(run, model, processor, SequenceBuilder(processor), tmp_path, lambda what, done, of: None)
    model = apply_structure(model, run.structure, run.seed, source)
    run_stages(UnsavedTrainer(run, model, processor, source, tmp_path, lambda line: None))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(run.stages)


@pytest.mark.parametrize("family", FOLDERS)
def test_what_is_merged_is_as_in_the_field(family: Family) -> None:
    """A name means one method in the registry and in the grid that is measured."""
    field = config.load(Comparison, [recipes_folder() / "compare" / "field.yaml"]).variants
    found = methods(family)
    needing = [name for name, variant in found.items() if variant.parents]
    assert len(needing) > 20
    for name in needing:
        assert (found[name].merge, found[name].start_from) == (field[name].merge, field[name].start_from), name
        assert set(found[name].parents) <= set(found), name


@pytest.mark.parametrize("family", FOLDERS)
def test_recipes_of_a_family_are_the_methods_of_their_names(family: Family) -> None:
    """One method is not described twice with two meanings."""
    for name in ("dense_joint", "unidecouple"):
        recipe = config.load(RunConfig, [family_recipe(family, name)])
        method = config.load(RunConfig, [family_recipe(family, "data")], (), [(name, run_values(name, methods(family)[name]))])
        assert recipe == method, name


def test_both_families_have_the_same_methods_and_every_page_has_one() -> None:
    assert list(methods("janus")) == list(methods("emu3"))
    described = {path.stem: path.read_text() for path in DOCUMENTED.glob("*.md") if path.stem != "README"}
    for page, text in described.items():
        assert any(f"`{name}`" in text for name in methods("janus")), page


def test_names_and_mistakes(bases: dict[Family, Loaded]) -> None:
    assert [family_of(str(place)) for place, *_ in bases.values()] == ["janus", "emu3"]
    assert find_method("janus", "dense") == ("dense_joint", methods("janus")["dense_joint"])
    with pytest.raises(ValueError, match=r"method 'unidecuople' is unknown \(did you mean 'unidecouple'\?\)"):
        find_method("emu3", "unidecuople")
    with pytest.raises(ValueError, match=r"method 'xyz' is unknown \(there are dense_joint, "):
        find_method("emu3", "xyz")
    with pytest.raises(ValueError, match=r"merges trained models: train dense_mmu and dense_t2i, then `unidecouple merge`"):
        run_values("task_arithmetic", methods("janus")["task_arithmetic"])
    with pytest.raises(ValueError, match=r"decouples trained models: train dense_t2i, then `unidecouple decouple`"):
        run_values("decouple_r32", methods("janus")["decouple_r32"])
    with pytest.raises(ValueError, match=r"starts from the model of 'decouple_r32': `unidecouple compare --methods` makes both"):
        run_values("decouple_r32_tuned", methods("janus")["decouple_r32_tuned"])
