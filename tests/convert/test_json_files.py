"""JSON of a checkpoint: any content gives one clear error, and code and quantised weights are refused by file and key."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from unidecouple.convert import json_files
from unidecouple.convert.json_files import check_configs, check_depths, read_json


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[1]", "does not contain a JSON object"),
        (b"null", "does not contain a JSON object"),
        (b"{", "cannot read"),
        (b"", "cannot read"),
        (b'{"a": "\xff\xfe"}', "cannot read"),
        (b'{"a": ' + b"1" * 5000 + b"}", "cannot read"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
    ],
)
def test_content_of_another_kind(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_json(tmp_path / "config.json")


def test_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, said in (("pipe", "is no regular file"), ("loop", "broken link"), ("none", "is missing"), (".", "no regular file")):
        with pytest.raises(ValueError, match=said):
            read_json(tmp_path / name)
    monkeypatch.setattr(json_files, "_MOST_BYTES", 10)
    (tmp_path / "large").write_text('{"a": 12345}')
    with pytest.raises(ValueError, match="12 bytes are more than 10"):
        read_json(tmp_path / "large")


@pytest.mark.parametrize(
    ("file", "raw", "place"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "evil.Evil"}}, "auto_map"),
        ("config.json", {"text_config": {"auto_map": {"AutoModel": "evil.Evil"}}}, r"text_config\.auto_map"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}, "auto_map"),
        ("processor_config.json", {"image_processor": {"a": [{"auto_map": "x"}]}}, r"image_processor\.a\.0\.auto_map"),
        ("preprocessor_config.json", {"auto_map": "evil.Evil"}, "auto_map"),
        ("generation_config.json", {"custom_generate": "someone/code"}, "custom_generate"),
    ],
)
def test_code_is_refused(tmp_path: Path, file: str, raw: dict[str, Any], place: str) -> None:
    (tmp_path / file).write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=rf"{file}: {place} names code to run, and nothing in a checkpoint is ever executed"):
        check_configs(tmp_path)


@pytest.mark.parametrize("raw", [{"quantization_config": {"bits": 4}}, {"text_config": {"quantization_config": {"bits": 4}}}])
def test_quantised_weights_are_refused(tmp_path: Path, raw: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="quantization_config says that the weights are quantised"):
        check_configs(tmp_path)


def test_what_names_no_code_passes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"auto_map": null, "quantization_config": null, "a": {"auto_map": {}}}')
    check_configs(tmp_path)
    check_depths(tmp_path, {"num_hidden_layers": 10_000, "layers": [1], "depth": "x"})
    with pytest.raises(ValueError, match=r"text_config\.num_hidden_layers=1000000000 is above 10,000"):
        check_depths(tmp_path, {"text_config": {"num_hidden_layers": 10**9}})
