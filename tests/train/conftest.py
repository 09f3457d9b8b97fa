"""Runs of a few steps from the small base."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from small_runs import FEW, NOT_SCORED, Run
from unidecouple.methods.stage import Stage
from unidecouple.run import Evaluation, RunConfig
from unidecouple.train.stop_request import InterruptedRunError
from unidecouple.train.train import train
from unidecouple.world.scoring import Scorer
from unidecouple.world.settings import SyntheticData


@pytest.fixture
def small_run(small_base: Path) -> RunConfig:
    return RunConfig(
        model_name_or_path=str(small_base),
        data=SyntheticData(pairs=24, scenes=24, t2i_batch_size=4, mmu_batch_size=2, turns=1, router_aux_samples=1, evaluation=FEW),
        stages=(Stage(learning_rate=1e-2, train={"attention": 1, "ffn": 1, "norms": 1, "generation": 1, "text_head": 1}),),
        evaluation=Evaluation(eval_steps=0),
        max_steps=6,
        logging_steps=1,
        save_steps=2,
        diagnose=False,
        device="cpu",
    )


@pytest.fixture(scope="session")
def run(small_cache: Path) -> Run:
    def start(config: RunConfig, folder: Path, stop_after: int | None = None) -> bool:
        stop = threading.Event()

        def say(line: str) -> None:
            if stop_after is not None and line.startswith(f"step {stop_after}/"):
                stop.set()

        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Scorer, "test", NOT_SCORED)
                train(config, folder, small_cache, say, stop)
        except InterruptedRunError:
            return False
        return True

    return start


@pytest.fixture(scope="session")
def run_once(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """As ``run`` into a new folder; the second time, the folder of the first is copied."""
    kept: dict[str, tuple[Path, bool]] = {}

    def start(config: RunConfig, folder: Path, stop_after: int | None = None) -> bool:
        key = f"{config} {stop_after}"
        if key not in kept:
            made = tmp_path_factory.mktemp("run")
            kept[key] = made, run(config, made, stop_after)
        made, finished = kept[key]
        shutil.copytree(made, folder, dirs_exist_ok=True)
        return finished

    return start
