"""GenEval's official prompts: judged from a file alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from own_data import write_jsonl
from unidecouple.eval.gallery import score_gallery
from unidecouple.eval.geneval_files import official_gallery
from unidecouple.eval.geneval_prompts import write_official


def test_official_prompts_need_a_detector(tmp_path: Path) -> None:
    write_official(tmp_path / "prompts")
    gallery = official_gallery(tmp_path, 1, limit=2)
    assert (len(gallery.metadata), list(gallery.files)) == (12, ["prompts/evaluation_metadata.jsonl"])
    assert score_gallery(gallery, tmp_path, None) is None
    rows = [
        {
            "filename": f"x/{number:05d}/samples/0000.png",
            "prompt": line["prompt"],
            "correct": line["tag"] in ("colors", "counting"),
            "reason": "",
            "metadata": json.dumps(line),
        }
        for number, line in enumerate(gallery.metadata)
    ]
    scored = score_gallery(gallery, tmp_path, write_jsonl(tmp_path / "results.jsonl", rows))
    assert scored is not None
    report, judge = scored
    values = {row.metric: row.value for row in report.scores}
    assert judge == "official results"
    assert (values["overall"], values["colors"], values["position"]) == (pytest.approx(1 / 3), 1.0, 0.0)
    assert report.failures == {"disagree with our rules": 0}
