"""A checkpoint that serves each task by other weights: a base, and what fine-tuning changed for one task (or for each).

A layer's own weights are the base's, and the tuned task gets deltas (``models/deltas.py``). Word embeddings and an Emu3's head
hold understanding's rows, with generation's beside them. Modules that one task alone uses are that task's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

from unidecouple.batch import TASK_KEYS, Task
from unidecouple.convert.deltas import delta_names, full_name
from unidecouple.convert.parts import Part
from unidecouple.convert.structure import with_text
from unidecouple.delta.checkpoint import Checkpoint
from unidecouple.delta.forms import ChangedMatrix, Fidelity, choose_forms
from unidecouple.delta.modules import owner_of
from unidecouple.delta.moved import LARGEST
from unidecouple.delta.pair import Pair, check_same_base, difference, is_shared_matrix, squared_norm
from unidecouple.delta.spectrum import spectrum, truncated
from unidecouple.models.configuration import UniJanusConfig
from unidecouple.models.deltas import EMBEDDINGS, HEAD, make_delta, pack
from unidecouple.models.families import UnifiedConfig
from unidecouple.source import PrintLine

_DECODER = "model.language_model."
_SUFFIX = ".weight"


@dataclass(frozen=True)
class Sources:
    """Which checkpoint each task's behaviour comes from.

    Attributes:
        base: whose weights the layers keep.
        of: task -> its source, ``base`` for a protected task.
    """

    base: Checkpoint
    of: Mapping[Task, Checkpoint]

    @classmethod
    def protecting(cls, pair: Pair, task: Task) -> Sources:
        """``task`` is the base's; the other is the tuned model's."""
        return cls(pair.base, {other: pair.base if other is task else pair.tuned for other in Task})

    @property
    def tuned(self) -> dict[Task, Checkpoint]:
        """Tasks whose source is not the base."""
        return {task: source for task, source in self.of.items() if source is not self.base}

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """Every checkpoint once, the base first."""
        return [self.base, *{id(source): source for source in self.tuned.values()}.values()]


@dataclass(frozen=True)
class Plan:
    """What is to be written.

    Attributes:
        sources: see ``Sources``.
        config: of the result.
        shapes: every weight of the result, without data.
        relative: per tuned task, the change of the shared matrices relative to their norm.
    """

    sources: Sources
    config: UnifiedConfig
    shapes: Part
    relative: dict[Task, float]

    @property
    def forms(self) -> dict[str, dict[str, str]]:
        """``task_deltas`` of the result."""
        return dict(self.config.text_config.task_deltas)

    @property
    def extra_bytes(self) -> int:
        """Bytes of the deltas."""
        return _delta_bytes(self.shapes)


@dataclass
class _Found:
    """What the first pass finds for one task."""

    matrices: dict[str, ChangedMatrix] = field(default_factory=dict)
    fixed: dict[str, str] = field(default_factory=dict)
    changed: float = 0.0
    whole: float = 0.0

    @property
    def relative(self) -> float:
        """Change of the shared matrices relative to their norm."""
        return (self.changed / self.whole) ** 0.5 if self.whole else 0.0


def plan_decoupled(sources: Sources, fidelity: Fidelity, say: PrintLine = lambda line: None) -> Plan:
    """Read all checkpoints once, and choose the form of every weight; raises as ``find_changes`` and ``choose_forms``."""
    return plan_of(sources, find_changes(sources, fidelity.needs_spectra, say), fidelity)


def find_changes(sources: Sources, spectra: bool, say: PrintLine = lambda line: None) -> Mapping[Task, _Found]:
    """What changed for each tuned task, from one reading of all checkpoints; with ``spectra``, singular values of each matrix.

    Raises:
        ValueError: a tuned model is not of this base; its family is unknown or its decoder not dense; a weight changed that two
            tasks share and that cannot be one task's.
    """
    base = sources.base
    _check_structure(base)
    assert base.config is not None
    found = {task: _Found() for task in sources.tuned}
    for names in base:
        before = base.read(names)
        for task, source in sources.tuned.items():
            after = source.read(names)
            for name in names:
                _look((name, before[name], after[name]), task, found[task], sources, spectra)
    for task, one in found.items():
        check_same_base(Pair(base, sources.tuned[task]), one.relative)
        say(f"{task.key}: {len(one.matrices)} matrices changed, by {one.relative:.1%} of their norm")
    return found


def plan_of(sources: Sources, found: Mapping[Task, _Found], fidelity: Fidelity) -> Plan:
    """The form of every weight at ``fidelity``, from what changed; needs spectra where ``fidelity`` does.

    Raises:
        ValueError: the budget is too small.
    """
    base = sources.base
    assert base.config is not None
    forms = _whole_forms(sources, found)
    if fidelity.budget is not None:
        whole = _delta_bytes(_shapes(sources, forms))
        if fidelity.budget <= whole:
            raise ValueError(
                f"a budget of {fidelity.budget:,} bytes is too small: word embeddings and norms that changed are stored whole, and "
                f"take {whole:,} bytes; raise it, or keep them frozen in fine-tuning"
            )
        fidelity = replace(fidelity, budget=fidelity.budget - whole)
    matrices = {f"{task.key}:{name}": matrix for task, one in found.items() for name, matrix in one.matrices.items()}
    for key, form in choose_forms(matrices, fidelity).items():
        task, _, name = key.partition(":")
        forms[task][name] = form
    forms = {task: _ordered(some, base) for task, some in forms.items() if some}
    config = with_text(base.config, task_deltas=forms)
    return Plan(sources, config, _shapes(sources, forms), {task: one.relative for task, one in found.items()})


def whole_bytes(sources: Sources, found: Mapping[Task, _Found]) -> int:
    """Bytes of what tasks keep whole at any fidelity: rows of word embeddings, norms, an Emu3's head. A budget covers them, too."""
    return _delta_bytes(_shapes(sources, _whole_forms(sources, found)))


def parts(plan: Plan, trained: Mapping[str, Tensor] = MappingProxyType({})) -> Iterator[Part]:
    """Every weight of the result, layer by layer, in the order of ``Plan.shapes``; those ``trained`` in place of the plan's."""
    for names in plan.sources.base:
        read = {id(one): one.read(names) for one in plan.sources.checkpoints}
        part: Part = {}
        for name in names:
            part |= _written(name, plan, {task: read[id(source)][name] for task, source in plan.sources.of.items()}, read)
        yield {name: trained.get(name, tensor) for name, tensor in part.items()}


def _look(weight: tuple[str, Tensor, Tensor], task: Task, found: _Found, sources: Sources, spectra: bool) -> None:
    """Note the change of one weight (name, before, after) for ``task``."""
    name, before, after = weight
    if is_shared_matrix(name, before, known=True):
        found.changed += squared_norm(difference(before, after))
        found.whole += squared_norm(before)
    kind = _kind(name, sources)
    if kind in (HEAD, EMBEDDINGS) and task is Task.MMU:
        return  # understanding's is the table itself; generation's difference to it is noted in ``_swap_embeddings``
    if kind == "owned" or torch.equal(before, after):
        return
    module = name.removeprefix(_DECODER).removesuffix(_SUFFIX)
    if kind == "unshared":
        raise ValueError(
            f"{name} differs between {sources.base.name} and {sources.tuned[task].name}, and both tasks use it: it cannot be one "
            "task's. Choose another mode (interpolate, revert), or keep it frozen in fine-tuning"
        )
    if kind == EMBEDDINGS:
        found.fixed[module] = f"rows:{len(_rows(before, after))}"
    elif kind == "matrix":
        measured = spectrum(name, difference(before, after), LARGEST) if spectra else None
        found.matrices[module] = ChangedMatrix((before.shape[0], before.shape[1]), after.element_size(), measured)
    else:  # norms, and an Emu3's head
        found.fixed[module] = "full"


def _kind(name: str, sources: Sources) -> str:
    if name == f"{HEAD}{_SUFFIX}" and not isinstance(sources.base.config, UniJanusConfig):
        return HEAD
    if isinstance(sources.base.config, UniJanusConfig) and owner_of(name) is not None:
        return "owned"
    if name == f"{_DECODER}{EMBEDDINGS}{_SUFFIX}":
        return EMBEDDINGS
    if name.startswith(_DECODER) and name.endswith(_SUFFIX):
        return "norm" if "norm" in name.rsplit(".", 2)[1] else "matrix"
    return "unshared"


def _delta_bytes(shapes: Part) -> int:
    return sum(tensor.nbytes for name, tensor in shapes.items() if ".deltas." in name)


def _whole_forms(sources: Sources, found: Mapping[Task, _Found]) -> dict[str, dict[str, str]]:
    forms = {task.key: dict(one.fixed) for task, one in found.items()}
    _swap_embeddings(sources, forms)
    return forms


def _swap_embeddings(sources: Sources, forms: dict[str, dict[str, str]]) -> None:
    """The rows (and head) in which generation's source differs from understanding's, where understanding's is not the base."""
    if sources.of[Task.MMU] is sources.base:
        return
    for name in (f"{_DECODER}{EMBEDDINGS}{_SUFFIX}", f"{HEAD}{_SUFFIX}"):
        kind = _kind(name, sources)
        if kind not in (EMBEDDINGS, HEAD):
            continue
        table, other = (sources.of[task].read([name])[name] for task in (Task.MMU, Task.T2I))
        some = forms.setdefault(Task.T2I.key, {})
        some.pop(kind, None)
        if rows := len(_rows(table, other)):
            some[kind] = "full" if kind == HEAD else f"rows:{rows}"


def _rows(table: Tensor, other: Tensor) -> Tensor:
    """Rows in which two tables differ, ascending."""
    return (table != other).any(1).nonzero()[:, 0]


def _ordered(forms: Mapping[str, str], base: Checkpoint) -> dict[str, str]:
    order = [name.removeprefix(_DECODER).removesuffix(_SUFFIX) for name in base.shapes]
    return {name: forms[name] for name in order if name in forms}


def _check_structure(base: Checkpoint) -> None:
    if base.config is None:
        raise ValueError(
            f"{base.name} is of a family that this package does not run, so it cannot serve two sets of weights: use --mode "
            "interpolate or revert, which write a checkpoint of the same form"
        )
    text = base.config.text_config
    if text.ffn != "dense" or text.per_group_layers is not None or text.task_deltas:
        raise ValueError(
            f"{base.name} is {text.described}: weights per task are added to a dense decoder. Give the dense checkpoints, or use "
            "--mode interpolate or revert"
        )


def _shapes(sources: Sources, forms: Mapping[str, Mapping[str, str]]) -> Part:
    out: Part = {}
    for names in sources.base:
        for name in names:
            owner = _source(name, sources)
            out[name] = owner.shapes[name]
            module = name.removeprefix(_DECODER).removesuffix(_SUFFIX)
            for task in TASK_KEYS:
                if (form := forms.get(task, {}).get(module)) and name == full_name(module) + _SUFFIX:
                    dtype = sources.of[Task[task.upper()]].shapes[name].dtype
                    with torch.device("meta"):
                        delta = make_delta(form, tuple(out[name].shape))
                    prefix = delta_names(module, task)
                    out |= {prefix + leaf: _typed(tensor, dtype) for leaf, tensor in delta.state_dict().items()}
    return out


def _source(name: str, sources: Sources) -> Checkpoint:
    """Whose weight is stored under ``name`` itself."""
    kind = _kind(name, sources)
    if kind == "owned":
        return sources.of[Task[str(owner_of(name)).upper()]]
    return sources.of[Task.MMU] if kind in (EMBEDDINGS, HEAD) else sources.base


def _written(name: str, plan: Plan, of: Mapping[Task, Tensor], read: Mapping[int, Part]) -> Part:
    """The weight ``name`` and the deltas beside it."""
    own = read[id(_source(name, plan.sources))][name]
    out = {name: own}
    module = name.removeprefix(_DECODER).removesuffix(_SUFFIX)
    if name != full_name(module) + _SUFFIX:
        return out
    for task in Task:
        if form := plan.forms.get(task.key, {}).get(module):
            prefix = delta_names(module, task.key)
            leaves = delta_leaves(name, form, own, of[task])
            out |= {prefix + leaf: _typed(tensor, of[task].dtype) for leaf, tensor in leaves.items()}
    return out


def delta_leaves(name: str, form: str, before: Tensor, after: Tensor) -> Part:
    """Weights of the delta of ``form`` that turns ``before`` into ``after``, or as near as the form can."""
    kind, _, number = form.partition(":")
    if form == "full":
        return {"weight": after.clone()}
    if kind == "rows":
        rows = _rows(before, after)
        return {"weight": after[rows], "rows": rows}
    tau = difference(before, after)
    if kind == "rank":
        up, down = truncated(name, tau, int(number))
        return {"up": up, "down": down}
    if kind == "sparse":
        index = tau.abs().flatten().topk(int(number)).indices.sort().values
        chosen = tau.flatten()[index]
        return {"scale": chosen.abs().mean().reshape(1), "index": index.int(), "sign": pack(chosen.unsqueeze(0) > 0)[0]}
    return {"scale": tau.abs().mean().reshape(1), "sign": pack(tau > 0)}


def _typed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def describe(plan: Plan) -> Sequence[str]:
    """The plan in lines: forms per task, and sizes."""
    base_bytes = sum(tensor.nbytes for name, tensor in plan.shapes.items() if ".deltas." not in name)
    return [
        f"{plan.config.text_config.described}",
        f"{plan.extra_bytes:,} bytes of weights per task beside {base_bytes:,} ({plan.extra_bytes / base_bytes:.1%})",
    ]
