"""A checkpoint is uploaded over HTTP to a local server that answers as the Hub does."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from unidecouple.cli import main
from unidecouple.convert.load import load_shapes
from unidecouple.files import sha256_file
from unidecouple.train.model_card import model_card
from unidecouple.train.push import push_to_hub

DEEPSEEK = "DEEPSEEK LICENSE AGREEMENT\nVersion 1.0"


class FakeHub(ThreadingHTTPServer):
    """Holds what was asked: repositories made and files committed."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.status = 200
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.status != 200:
            self._answer({"error": "You may not write here"}, self.server.status)
        elif self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            self._answer({"url": f"{self.server.url}/me/mine", "name": "me/mine"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self._answer({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer({"commitUrl": f"{self.server.url}/me/mine/commit/1", "commitOid": "1", "pullRequestUrl": None})
        else:
            self._answer({"isValid": True, "errors": [], "warnings": []})  # of the model card

    def _answer(self, value: object, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def run_folder(small_base: Path, tmp_path: Path) -> Path:
    """A finished run as training leaves it."""
    folder = tmp_path / "runs" / "mine"
    checkpoint = folder / "checkpoint-7"
    shutil.copytree(small_base, checkpoint)
    for name in ("optimizer.safetensors", "ema.safetensors", "trainer_state.json", "data.jsonl"):
        (checkpoint / name).write_bytes(b"not of the model")
    (checkpoint / "LICENSE-MODEL").write_text(DEEPSEEK)
    (checkpoint / "LICENSE-CODE").write_text("MIT License")
    data = {"kind": "files", "sources": [{"path": "/data/mine/train.jsonl"}], "validation": [{"path": "/data/mine/held.jsonl"}]}
    run = {"model_name_or_path": "deepseek-ai/Janus-Pro-1B", "data": data, "structure": {"kind": "ta_moe"}, "max_steps": 7}
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    prints = {"base/config.json": "b", "/data/mine/train.jsonl": "t1", "/data/mine/held.jsonl": "h1", "/data/mine/a.png": "p1"}
    (folder / "fingerprints.json").write_text(json.dumps(prints))
    score = {"benchmark": "answers", "metric": "log_probability", "value": -1.25, "ceiling": 0.0, "floor": -9.0}
    (folder / "scores.json").write_text(json.dumps({"step": 7, "scores": [score]}))
    (folder / "eval" / "pope").mkdir(parents=True)
    row = {"metric": "accuracy", "value": 0.8125, "low": 0.75, "high": 0.86, "count": 64}
    (folder / "eval" / "pope" / "card.json").write_text(json.dumps({"benchmark": "pope", "scores": [row]}))
    return folder


def test_the_command_uploads_the_model_and_nothing_else(
    hub: FakeHub, run_folder: Path, small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run_folder), "me/mine", "--private"]) == 0
    assert capsys.readouterr().out.strip() == f"{hub.url}/me/mine/commit/1"
    (made,) = hub.made
    assert (made["name"], made["organization"]) == ("mine", "me")
    assert made.get("private") is True or made.get("visibility") == "private"
    expected = {path.name for path in small_base.iterdir() if not path.name.startswith(".")}
    expected -= {"optimizer.safetensors", "trainer_state.json", "ema.safetensors"}
    assert {*hub.files} == expected | {"README.md", "LICENSE-MODEL", "LICENSE-CODE"}
    assert hub.tokens == {"Bearer hf_secret"}
    for name, content in hub.files.items():
        assert b"not of the model" not in content, name
        (tmp_path / name).write_bytes(content)
    load_shapes(str(tmp_path))  # what was uploaded is a whole checkpoint


def test_the_default_visibility_is_the_hubs(hub: FakeHub, run_folder: Path) -> None:
    assert push_to_hub(run_folder / "checkpoint-7", "me/mine").endswith("/commit/1")
    assert not {"private", "visibility"} & {key for key, value in hub.made[0].items() if value is not None}


def test_the_card(run_folder: Path) -> None:
    checkpoint = run_folder / "checkpoint-7"
    text = model_card(checkpoint, "mine", ("LICENSE-CODE", "LICENSE-MODEL"))
    _, front, body = text.split("---\n", 2)
    found = yaml.safe_load(front)
    assert found == {
        "base_model": "deepseek-ai/Janus-Pro-1B",
        "base_model_relation": "finetune",
        "library_name": "unidecouple",
        "license": "other",
        "license_name": "deepseek",
        "license_link": "LICENSE-MODEL",
        "pipeline_tag": "any-to-any",
        "tags": ["unidecouple", "multimodal", "text-to-image", "visual-question-answering", "ta_moe"],
    }
    for row in (
        "| structure | ta_moe |",
        "| steps | 7 |",
        "| answers | log_probability | -1.250 | |",
        "| pope | accuracy | 0.812 | 0.750 to 0.860 |",
        "| train.jsonl | training | `t1` |",
        "| held.jsonl | validation | `h1` |",
        "1 image files besides.",
        f"| model.safetensors | `{sha256_file(checkpoint / 'model.safetensors')}` |",
        "- [LICENSE-MODEL](LICENSE-MODEL)",
    ):
        assert row in body
    assert "/data/mine" not in text


@pytest.mark.parametrize(
    ("licence", "keys"),
    [
        ("Apache License\nVersion 2.0", {"license": "apache-2.0"}),
        ("MIT License", {"license": "mit"}),
        ("Ask us.", {"license": "other", "license_name": "LICENSE", "license_link": "LICENSE"}),
        (None, {}),
    ],
)
def test_licences_are_recognised(licence: str | None, keys: dict[str, str], small_base: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(small_base, tmp_path / "m"))
    if licence is not None:
        (checkpoint / "LICENSE").write_text(licence)
    names = () if licence is None else ("LICENSE",)
    found = yaml.safe_load(model_card(checkpoint, "m", names, "a/b").split("---\n")[1])
    assert {key: value for key, value in found.items() if key.startswith("license")} == keys
    assert found["base_model"] == "a/b"
    with pytest.raises(ValueError, match="no id of the Hub"):
        model_card(checkpoint, "m", names, "checkpoints/janus/pro")


def test_an_adapter_names_a_base_that_others_can_load(hub: FakeHub, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    config = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "checkpoints" / "janus"), "r": 4}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"janus', which others cannot load: .*--base-model OWNER/NAME"):
        push_to_hub(adapter, "me/mine")
    assert not hub.files
    push_to_hub(adapter, "me/mine", base_model="deepseek-ai/Janus-Pro-1B")
    uploaded = json.loads(hub.files["adapter_config.json"])
    assert uploaded == {**config, "base_model_name_or_path": "deepseek-ai/Janus-Pro-1B"}
    assert json.loads((adapter / "adapter_config.json").read_text()) == config
    assert str(tmp_path).encode() not in b"".join(hub.files.values())
    for name in ("unified", "deepseek-ai/Janus-Pro-7B"):  # a shipped base; an id that it names already
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": name}))
        push_to_hub(adapter, "me/mine")
        assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] == name


def test_refusals_are_one_line(
    hub: FakeHub, run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.status = 403
    assert main(["push", str(run_folder), "me/mine"]) == 1
    error = capsys.readouterr().err
    assert "the Hub refused me/mine (403: " in error
    assert "check the token" in error
    assert main(["push", str(run_folder), "a/b/c"]) == 1
    assert "'a/b/c' is no id of a repository" in capsys.readouterr().err
    assert main(["push", str(run_folder.parent), "me/mine"]) == 1
    assert "no checkpoint at" in capsys.readouterr().err
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(run_folder), "me/mine"]) == 1
    assert "could not be reached" in capsys.readouterr().err


def test_a_dry_run_lists_what_would_be_uploaded(
    hub: FakeHub, run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files, sizes and card of the upload that follows, and no request before it; no token is needed."""
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(run_folder), "me/mine", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert (hub.made, hub.files, hub.tokens) == ([], {}, set())
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    push_to_hub(run_folder, "me/mine")
    total = sum(map(len, hub.files.values()))
    assert printed.startswith(f"me/mine would get {len(hub.files)} files of {total:,} bytes; nothing was uploaded\n")
    assert all(f"{len(content):,}  {name}\n" in printed for name, content in hub.files.items())
    assert printed.endswith(hub.files["README.md"].decode().rstrip() + "\n")
    assert main(["push", str(run_folder), "my/mine/too", "--dry-run"]) == 1
    assert "is no id of a repository" in capsys.readouterr().err
