"""Twenty variants, five seeds, three rates, two scenarios: the page groups them, and shows what no table can."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from comparison_field import AXIS_OF, VARIANTS, write_field
from unidecouple.eval.suite import metric_named
from unidecouple.figures.style import VariantStyle, variant_styles
from unidecouple.figures.wording import MINUS
from unidecouple.report import write_report
from unidecouple.report.figures_forest import forest
from unidecouple.report.fronts import area, front_areas, undominated
from unidecouple.report.results import AXES, Results, load_results
from unidecouple.report.tables import area_table, headline

GROUPS = ["Controls", "Structure", "Objective", "Gradient", "Schedule", "Merging"]


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return load_results(write_field(tmp_path_factory.mktemp("field"), ("S2",)))


@pytest.fixture(scope="module")
def look(field: Results) -> dict[str, VariantStyle]:
    return variant_styles(field.names, field.title, field.axis_rank, field.role)


def test_groups_hold_every_variant_once(field: Results) -> None:
    groups = dict(field.groups("S2"))
    assert list(groups) == ["", *AXES]
    assert sorted(name for names in groups.values() for name in names) == sorted(VARIANTS)
    assert groups["structure"][-1] == "unidecouple"


def test_no_two_variants_of_a_figure_look_alike(field: Results, look: dict[str, VariantStyle]) -> None:
    for _, names in field.groups("S2"):
        shown = {"dense_joint", *names}
        assert len({(look[name].color, look[name].marker) for name in shown}) == len(shown)
        assert len({look[name].color for name in shown}) == len(shown)
    many = variant_styles([f"v{number}" for number in range(40)], str)
    assert len({(one.color, one.marker) for one in many.values()}) == 40


def test_the_table_has_a_line_a_variant_and_headed_groups(field: Results, look: dict[str, VariantStyle]) -> None:
    table = headline(field, "S2", look)
    assert [line.axis for line in table.lines if line.axis] == list(AXES)
    assert (len(table.lines), len(table.others)) == (1 + len(VARIANTS), 2 * len(VARIANTS))
    assert {line.seeds for line in table.lines} == {"the base", "5 seeds, 3 rates"}
    assert all(len(line.cost) == len(table.costs) for line in table.lines[1:])


def test_a_grid_says_what_its_variants_are_called(field: Results) -> None:
    titled = replace(field, meta={**field.meta, "titles": {"pcgrad": "PCGrad"}})
    assert (field.title("pcgrad"), titled.title("pcgrad")) == ("pcgrad", "PCGrad")
    assert titled.title("pcgrad@lr=0.3") == "PCGrad, rate \u00d7 0.3"
    look = variant_styles(titled.names, titled.title, titled.axis_rank, titled.role)
    drawn = forest(titled, "S2", look)
    assert drawn is not None
    assert ">PCGrad<" in drawn.svg
    assert "PCGrad" in {line.name for line in headline(titled, "S2", look).lines}


def test_a_forest_of_what_differs(field: Results, look: dict[str, VariantStyle]) -> None:
    """A line a variant but the control; what lies far out is an arrow with its value."""
    drawn = forest(field, "S2", look)
    assert drawn is not None
    names = [name for name in VARIANTS if name != "dense_joint"]
    assert all(f">{field.title(name)}<" in drawn.svg for name in names)
    assert f"Differences of {len(names)} variants to dense joint" in drawn.alt
    rows = tuple(replace(row, value=row.value - 0.5) if row.variant == "bagel" else row for row in field.rows)
    far = forest(replace(field, rows=rows), "S2", look)
    assert far is not None
    assert re.search(rf">{MINUS}[45]\d\.\d<", far.svg)
    assert not re.search(rf">{MINUS}[45]\d\.\d<", drawn.svg)


def test_few_variants_need_no_forest(experiment: object) -> None:
    results = load_results(Path(experiment.write()))  # type: ignore[attr-defined]
    assert forest(results, "S1-r0", {}) is None


def test_areas(field: Results) -> None:
    # (.2, .9) and (.5, .6), and (.4, .5) below: .2 x .9 + .3 x .6
    assert undominated([(0.5, 0.6), (0.4, 0.5), (0.2, 0.9), (0.2, 0.9)]) == [(0.2, 0.9), (0.5, 0.6)]
    assert area([(0.5, 0.6), (0.4, 0.5), (0.2, 0.9)]) == pytest.approx(0.36)
    assert area([(1.0, 1.0), (0.3, 0.4)]) == 1.0
    assert area([]) == 0.0
    found = front_areas(field, "S2", "mot", metric_named("pope"))
    assert set(found) == set(range(5))
    table = area_table(field, "S2")
    assert table is not None
    assert (table.control, len(table.lines)) == ("dense joint", len(VARIANTS))
    compared = {name for name, _, cells in table.lines if cells[0] is not None and cells[0].delta}
    assert compared == {name for name, *_ in table.lines} - {"dense joint"}


@pytest.mark.slow
def test_the_whole_page(field: Results) -> None:
    """All groups in its tables; its figures come a group, with the control in each."""
    page = write_report(field.folder).read_text(encoding="utf-8")
    assert field.num_runs < len(field.runs), "scoring the start is no run"
    assert f"Partial results: 2 of {field.num_runs + 2} runs" in page
    assert page.count('<tr class="axis">') == 2 * len(AXES), "in the table and in that of the other rates"
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert all(name.replace("_", " ") in page for name in AXIS_OF if name not in ("moe", "unidecouple"))
    assert len(page) < 6_000_000
    parts = re.split(r"<h4>(\w+)</h4>", page)[1:]
    figures = list(zip(parts[::2], parts[1::2], strict=True))
    assert [heading for heading, _ in figures] == 3 * GROUPS, "each kind of figure per group"
    assert all("dense joint" in figure for _, figure in figures)
    for gradient in (figure for heading, figure in figures if heading == "Gradient"):
        assert all(name in gradient for name in ("pcgrad", "mgda", "cagrad"))
        assert "adamerging" not in gradient


def test_a_variant_that_was_not_run_at_its_own_rate_leads_with_its_first(new_experiment: object) -> None:
    made = new_experiment()  # type: ignore[operator]
    for variant in ("dense_joint", "dense_joint@lr=0.3", "moe@lr=0.3", "moe@und=0.1"):
        made.add("S2", variant, {"pope": (0.5,), "vqa": (0.5,), "geneval": (0.5,)})
    results = load_results(Path(made.write()))
    assert results.leading("S2") == ("dense_joint", "moe@lr=0.3")
    assert results.groups("S2") == (("", ("dense_joint", "moe")),)
    assert results.rates_tried("S2", "moe") == 2
