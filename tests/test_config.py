"""Loading, layering, overriding, checking and dumping of configurations."""

from __future__ import annotations

import enum
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unidecouple.config import ConfigError, dump, load


class Dtype(enum.Enum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@dataclass(frozen=True)
class Stage:
    name: str
    learning_rate: float = 1e-3
    max_steps: int = 10
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        if self.learning_rate < 0:
            raise ValueError(f"learning_rate={self.learning_rate} must not be negative")


@dataclass(frozen=True)
class Sum:
    kind: Literal["sum"] = "sum"


@dataclass(frozen=True)
class Surgery:
    kind: Literal["pcgrad", "cagrad"] = "pcgrad"
    strength: float = 0.5


@dataclass(frozen=True)
class Run:
    seed: int = 0
    bf16: bool = False
    dtype: Dtype = Dtype.FLOAT32
    output_dir: Path | None = None
    stages: tuple[Stage, ...] = ()
    variants: dict[str, Stage] = field(default_factory=dict)
    gradient: Sum | Surgery = Sum()
    layers: list[int] = field(default_factory=list)


def written(folder: Path, **texts: str) -> list[Path]:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return [folder / f"{name}.yaml" for name in texts]


def complaint(folder: Path, text: str, *overrides: str) -> str:
    """The message about a wrong x.yaml, with the folder's name taken out."""
    with pytest.raises(ConfigError) as caught:
        load(Run, written(folder, x=text), overrides)
    return str(caught.value).replace(f"{folder}/", "")


class TestLayers:
    def test_no_file_gives_the_defaults(self) -> None:
        assert load(Run, []) == Run()

    def test_nested_types(self, tmp_path: Path) -> None:
        text = """
            dtype: bfloat16
            output_dir: runs/a
            stages: [{name: one, learning_rate: 1e-4, betas: [0.5, 1]}]
            variants: {dense: {name: two, max_steps: 3}}
            gradient: {kind: cagrad}
            layers: [1, 2]
        """
        assert load(Run, written(tmp_path, x=text)) == Run(
            dtype=Dtype.BFLOAT16,
            output_dir=Path("runs/a"),
            stages=(Stage("one", 1e-4, betas=(0.5, 1.0)),),
            variants={"dense": Stage("two", max_steps=3)},
            gradient=Surgery("cagrad"),
            layers=[1, 2],
        )

    def test_later_files_win_mappings_merge_and_lists_are_replaced(self, tmp_path: Path) -> None:
        first = "{seed: 1, layers: [1, 2, 3], variants: {a: {name: a, max_steps: 1}, b: {name: b}}}"
        second = "{layers: [9], variants: {a: {learning_rate: 2.0}}}"
        config = load(Run, written(tmp_path, first=first, second=second))
        assert config == Run(seed=1, layers=[9], variants={"a": Stage("a", 2.0, 1), "b": Stage("b")})

    def test_bases_come_before_the_file_that_names_them(self, tmp_path: Path) -> None:
        (tmp_path / "parts").mkdir()
        written(tmp_path / "parts", size="{base: root.yaml, seed: 2, layers: [2]}", root="{seed: 1, bf16: true}")
        paths = written(tmp_path, x="{base: [parts/size.yaml], layers: [3]}")
        assert load(Run, paths) == Run(seed=2, bf16=True, layers=[3])

    def test_two_bases_of_one_file_may_share_a_third(self, tmp_path: Path) -> None:
        paths = written(
            tmp_path, x="base: [a.yaml, b.yaml]", a="{base: c.yaml, seed: 5}", b="{base: c.yaml, layers: [1]}", c="bf16: true"
        )
        assert load(Run, paths[:1]) == Run(seed=5, bf16=True, layers=[1])

    def test_a_mapping_whose_kind_changes_is_replaced_whole(self, tmp_path: Path) -> None:
        paths = written(tmp_path, a="gradient: {kind: pcgrad, strength: 0.9}", b="gradient: {kind: cagrad}")
        assert load(Run, paths) == Run(gradient=Surgery("cagrad", strength=0.5))
        assert load(Run, paths[:1], ["gradient.kind=sum"]) == Run(gradient=Sum())
        assert load(Run, paths[:1], ["gradient.kind=pcgrad"]) == Run(gradient=Surgery("pcgrad", strength=0.9))

    def test_a_circle_of_bases_is_an_error(self, tmp_path: Path) -> None:
        paths = written(tmp_path, a="base: b.yaml", b="base: a.yaml")
        with pytest.raises(ConfigError, match="includes itself"):
            load(Run, paths[:1])

    def test_an_empty_file_changes_nothing(self, tmp_path: Path) -> None:
        assert load(Run, written(tmp_path, x="# nothing yet\n")) == Run()

    def test_what_an_anchor_shares_is_overridden_apart(self, tmp_path: Path) -> None:
        text = "variants: {a: &stage {name: s}, b: *stage, c: {<<: *stage, max_steps: 4}}"
        config = load(Run, written(tmp_path, x=text), ["variants.a.max_steps=7"])
        assert {name: stage.max_steps for name, stage in config.variants.items()} == {"a": 7, "b": 10, "c": 4}


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("seed=3", Run(seed=3, stages=(Stage("one"), Stage("two")))),
            ("stages.1.learning_rate=2e-5", Run(stages=(Stage("one"), Stage("two", 2e-5)))),
            ("stages.0={max_steps: 4}", Run(stages=(Stage("one", max_steps=4), Stage("two")))),
            ("stages.0.betas.1=0.5", Run(stages=(Stage("one", betas=(0.9, 0.5)), Stage("two")))),
            ("stages=[]", Run()),
            ("variants.new.name=n", Run(stages=(Stage("one"), Stage("two")), variants={"new": Stage("n")})),
            ("output_dir=a=b", Run(output_dir=Path("a=b"), stages=(Stage("one"), Stage("two")))),
            ("output_dir=", Run(stages=(Stage("one"), Stage("two")))),
        ],
    )
    def test_value(self, tmp_path: Path, override: str, expected: Run) -> None:
        paths = written(tmp_path, x="stages: [{name: one, betas: [0.9, 0.99]}, {name: two}]")
        assert load(Run, paths, [override]) == expected

    def test_the_last_one_wins(self) -> None:
        assert load(Run, [], ["seed=1", "seed=2"]) == Run(seed=2)

    @pytest.mark.parametrize("override", ["seed", "=3", "stages..name=a"])
    def test_another_form_is_an_error(self, override: str) -> None:
        with pytest.raises(ConfigError, match=r"must have the form dotted\.key=value"):
            load(Run, [], [override])

    def test_a_position_outside_a_list_is_an_error(self, tmp_path: Path) -> None:
        said = complaint(tmp_path, "stages: [{name: one}]", "stages.1.name=two")
        assert said == "override 'stages.1.name=two': stages is a list of 1 entries without an entry '1' (the first is 0)"


class TestComplaints:
    """Every message names the source, the place, the cause and, where there is one, the nearest known name."""

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("sede: 1", "x.yaml: unknown key 'sede' at the top level (did you mean 'seed'?)"),
            (
                "stages: [{name: a, learning_rte: 1.0}]",
                "x.yaml: unknown key 'learning_rte' in stages.0 (did you mean 'learning_rate'?)",
            ),
            (
                "variants: {v: {name: a, q: 1}}",
                "x.yaml: unknown key 'q' in variants.v (known: name, learning_rate, max_steps, betas)",
            ),
            ("stages: [{name: a}, {max_steps: 1}]", "x.yaml: missing key 'name' in stages.1"),
            ("stages: [{name: a, learning_rate: -1.0}]", "x.yaml: stages.0: learning_rate=-1.0 must not be negative"),
            ("dtype: float23", "x.yaml: unknown dtype 'float23' (did you mean 'float32'?)"),
            ("seed: '3'", "x.yaml: seed='3': input should be a valid integer"),
            ("seed: true", "x.yaml: seed=True: input should be a valid integer"),
            ("bf16: yes", "x.yaml: bf16='yes': input should be a valid boolean"),
            ("layers: 3", "x.yaml: layers=3: input should be a valid array"),
            ("gradient: {kind: pcgrad, strenght: 1.0}", "x.yaml: unknown key 'strenght' in gradient (did you mean 'strength'?)"),
            ("gradient: {kind: pcgard}", "x.yaml: unknown gradient.kind 'pcgard' (did you mean 'pcgrad'?)"),
            ("gradient: {kind: zzz}", "x.yaml: unknown gradient.kind 'zzz' (known: sum, pcgrad, cagrad)"),
            ("learning_rate: 1.0", "x.yaml: unknown key 'learning_rate' at the top level (did you mean 'stages.0.learning_rate'?)"),
            (
                "{variants: {v: {name: a}}, max_steps: 1}",
                "x.yaml: unknown key 'max_steps' at the top level (did you mean 'stages.0.max_steps' or 'variants.v.max_steps'?)",
            ),
            ("stages: [{name: a, bf16: true}]", "x.yaml: unknown key 'bf16' in stages.0 (did you mean 'bf16' at the top level?)"),
            ("gradient: {kind: sum, strength: 1.0}", "x.yaml: key 'strength' does not go with the other keys in gradient"),
        ],
    )
    def test_misfit(self, tmp_path: Path, text: str, said: str) -> None:
        assert complaint(tmp_path, text) == said

    def test_every_misfit_is_listed(self, tmp_path: Path) -> None:
        assert len(complaint(tmp_path, "{sede: 1, dtype: x, layers: 3}").split("\n")) == 3

    def test_the_right_member_of_a_union_is_explained_alone(self, tmp_path: Path) -> None:
        said = complaint(tmp_path, "gradient: {kind: cagrad, strength: much}")
        assert said == "x.yaml: gradient.strength='much': input should be a valid number"

    def test_the_file_named_is_the_one_that_set_the_value(self, tmp_path: Path) -> None:
        paths = written(tmp_path, a="variants: {v: {name: a, max_step: 1}}", b="{variants: {v: {learning_rate: 1.0}}, seed: x}")
        with pytest.raises(ConfigError) as caught:
            load(Run, paths, ["dtype=int8"])
        a, b = paths
        assert {line.split(": ")[0] for line in str(caught.value).split("\n")} == {str(a), str(b), "override 'dtype=int8'"}

    def test_a_value_out_of_its_bounds_is_laid_on_what_set_it(self, tmp_path: Path) -> None:
        said = complaint(tmp_path, "stages: [{name: a}]", "stages.0.learning_rate=-1.0")
        assert said == "override 'stages.0.learning_rate=-1.0': stages.0: learning_rate=-1.0 must not be negative"

    def test_a_missing_file_names_the_nearest(self, tmp_path: Path) -> None:
        written(tmp_path, demo="", paper="")
        with pytest.raises(ConfigError, match=r"dmeo\.yaml does not exist \(did you mean .*/demo\.yaml\?\)"):
            load(Run, [tmp_path / "dmeo.yaml"])
        with pytest.raises(ConfigError, match=r"zzz\.yaml does not exist \(YAML files in .*: demo\.yaml, paper\.yaml\)"):
            load(Run, [tmp_path / "zzz.yaml"])
        with pytest.raises(ConfigError, match="nor does the folder"):
            load(Run, [tmp_path / "nowhere" / "x.yaml"])

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("seed: 1\nlayers: [1, 2\n", r"x\.yaml:3:1: broken YAML: expected ',' or '\]'"),
            ("seed: 1\n\tbf16: true\n", r"x\.yaml:2:1: broken YAML: found character '\\t'"),
            ("seed: 1\nseed: 2\n", r"x\.yaml:2:1: broken YAML: key 'seed' appears twice"),
            ("1: 2", r"x\.yaml:1:1: broken YAML: a key must be text"),
            ("seed: !!binary aGk=", r"x\.yaml:1:7: broken YAML: could not determine a constructor"),
            ("layers: &a [*a]", r"x\.yaml: broken YAML: Circular"),
            ("seed: \x07", r"x\.yaml: broken YAML: unacceptable character"),
            ("[1, 2]", r"x\.yaml: must contain keys and values, not a list"),
            ("base: {a: b}", r"x\.yaml: 'base' must be a file name or a list of file names"),
        ],
    )
    def test_broken_yaml(self, tmp_path: Path, text: str, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            load(Run, written(tmp_path, x=text))

    def test_files_that_are_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigError, match="cannot be read as a text file"):
            load(Run, [tmp_path / "x.yaml"])
        with pytest.raises(ConfigError, match="is a folder"):
            load(Run, [tmp_path])


@dataclass(frozen=True)
class Words:
    word: str | float | int | bool | None
    words: dict[str, str] = field(default_factory=dict)


class TestYamlRules:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("1e-3", 0.001),
            ("-2.5E+4", -25000.0),
            (".5", 0.5),
            (".inf", float("inf")),
            ("12", 12),
            ("true", True),
            ("~", None),
            ("on", "on"),
            ("no", "no"),
            ("12:30", "12:30"),
            ("010", "010"),
            ("2024-01-01", "2024-01-01"),
            ("1_000", "1_000"),
        ],
    )
    def test_plain_scalar(self, text: str, value: object) -> None:
        loaded = load(Words, [], [f"word={text}"]).word
        assert (loaded, type(loaded)) == (value, type(value))


stages = st.builds(
    Stage,
    name=st.text(max_size=8) | st.sampled_from(["1e-3", "on", "null", "~", "<<", "1", ".inf", "- a", "a: b", "=", "2024-01-01"]),
    learning_rate=st.floats(min_value=0, allow_nan=False),
    max_steps=st.integers(-(2**60), 2**60),
    betas=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
runs = st.builds(
    Run,
    seed=st.integers(0, 2**31),
    bf16=st.booleans(),
    dtype=st.sampled_from(Dtype),
    output_dir=st.none() | st.sampled_from([Path("runs/a"), Path("/b"), Path("1e5")]),
    stages=st.lists(stages, max_size=2).map(tuple),
    variants=st.dictionaries(st.text(max_size=6), stages, max_size=2),
    gradient=st.just(Sum()) | st.builds(Surgery, kind=st.sampled_from(["pcgrad", "cagrad"]), strength=st.floats(0, 1)),
    layers=st.lists(st.integers(0, 9), max_size=3),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(runs)
def test_what_is_dumped_loads_to_an_equal_configuration(config: Run) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resolved.yaml"
        path.write_text(dump(config), encoding="utf-8")
        assert load(Run, [path]) == config


def test_dump_writes_defaults_in_the_order_of_the_fields() -> None:
    assert dump(Stage("one")) == "name: one\nlearning_rate: 0.001\nmax_steps: 10\nbetas:\n- 0.9\n- 0.99\n"


NESTED = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
MERGED = "a0: &a0 {k: 1, l: 2}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{','.join([f'*a{n - 1}'] * 10)}], z{n}: 1}}\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (NESTED, "more than 100,000 values"),
        (MERGED, "more than 100,000 values"),
        ("a: &a " + "x" * 100_000 + "\nb: [" + "*a," * 9000 + "]", "more than 100,000 values"),
        ("a: &a [*a]", "Circular reference"),
        ("[" * 10_000, "nested more than 60 levels"),
        ("- " * 10_000, "nested more than 60 levels"),
        ("a: " + "9" * 10_000, "(10,000 characters) does not fit into 64 bits"),
        ("a: 9223372036854775808", "does not fit into 64 bits"),
        ("a: 1e400", "'1e400' is too large a number"),
        ("a: !!int ''", "'' is no int"),
        ("a: !!int 1:30", "'1:30' is no int"),
        ("a: !!bool x", "'x' is no bool"),
        ("a: \0", "unacceptable character #x0000"),
    ],
    ids=lambda value: value[:12],
)
def test_yaml_without_bound_is_one_line(text: str, problem: str, tmp_path: Path) -> None:
    """The first text is 560 bytes that stand for 10^10 values; PyYAML's own message is several lines where it has no position."""
    for read in (lambda: load(Run, written(tmp_path, r=text)), lambda: load(Run, [], [f"layers={text}"])):
        with pytest.raises(ConfigError) as caught:
            read()
        assert problem in str(caught.value)
        assert "\n" not in str(caught.value).removeprefix("override")[-200:]


def test_the_largest_and_smallest_numbers_and_shared_parts_are_read(tmp_path: Path) -> None:
    text = "variants: {a: &a {name: x, max_steps: 9223372036854775807}, b: *a, c: {<<: *a, learning_rate: !!float 3}}"
    run = load(Run, written(tmp_path, r="\ufeff" + text))
    assert [(one.max_steps, one.learning_rate) for one in run.variants.values()] == [(2**63 - 1, 1e-3)] * 2 + [(2**63 - 1, 3.0)]
    assert load(Run, [], ["seed=-9223372036854775808"]).seed == -(2**63)


def test_only_files_are_read_as_recipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large.yaml").write_text("#" * (1 << 20) + "\n")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, problem in (
        ("pipe", "is a named pipe, not a file"),
        ("/dev/zero", "is a (character )?device, not a file"),
        (".", "is a folder"),
        ("large.yaml", "more than 1,048,576 bytes"),
        ("latin.yaml", "cannot be read as a text file"),
        ("loop", "cannot be read"),
        ("n" * 300, "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=problem):
            load(Run, [tmp_path / name])


def test_bases_of_bases_are_bounded(tmp_path: Path) -> None:
    texts = {f"r{n}": f"base: [{','.join([f'r{n + 1}.yaml'] * 10)}]\n" for n in range(9)} | {"r9": "seed: 1\n"}
    with pytest.raises(ConfigError, match="more than 100 files"):
        load(Run, written(tmp_path, **texts)[:1])
    with pytest.raises(ConfigError, match="5000 keys"):
        load(Run, [], [".".join(["a"] * 5000) + "=1"])
