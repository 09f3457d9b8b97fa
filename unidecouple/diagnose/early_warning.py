"""A warning during training when one task falls while the other rises: what users otherwise notice after the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def early_warning(history: Sequence[Mapping[str, float]], tasks: Mapping[str, str], fall: float = 0.05) -> str | None:
    """Return a warning about the newest validation scores, or None; language counts as a task of its own.

    A task falls when a benchmark of it is at least ``fall`` below its best so far, and rises when one is as much above
    its first. (Few validation samples scatter by .02 to .03: ``fall`` is about twice that.)

    Args:
        history: main score by benchmark, one mapping per evaluation, oldest first.
        tasks: benchmark -> key of the task that it scores; benchmarks that are not in it are left out.
        fall: in units of the score: a share, or nats per token.
    """
    if len(history) < 2:
        return None
    first, now = history[0], history[-1]
    best = {name: max(scores[name] for scores in history if name in scores) for name in now}
    fallen = {name for name in now if best[name] - now[name] >= fall}
    risen = {name for name in now if name in first and now[name] - first[name] >= fall}
    found, grown = [], set()
    for task in dict.fromkeys(tasks.values()):
        lost = sorted(name for name in fallen if tasks.get(name) == task)
        won = {name for name in risen if tasks.get(name, task) != task}
        if lost and won:
            found.append(f"{task} falls ({', '.join(f'{name} {best[name]:.3f} -> {now[name]:.3f}' for name in lost)})")
            grown |= won
    if not found:
        return None
    rises = ", ".join(f"{name} {first[name]:.3f} -> {now[name]:.3f}" for name in sorted(grown))
    return (
        f"warning: {' and '.join(found)} while another task rises ({rises}). Decouple the tasks "
        "(structure: {kind: ta_moe}), replay more of what falls, or lower the rates of its weights"
    )
