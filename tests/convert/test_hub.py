"""A model is downloaded by its id, from a server on this machine; what cannot be had is one clear line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from hub_server import Hub, serving
from published import write_published
from unidecouple.convert.hub import download, is_hub_id
from unidecouple.convert.load import checkpoint_folder, load, load_processor
from unidecouple.convert.stored import source_folder

NAME = "deepseek-ai/Janus-Pro-1B"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    published = {NAME: write_published(tmp_path / "safe"), "owner/bin": write_published(tmp_path / "bin", form="bin", seed=1)}
    (tmp_path / "safe" / "pytorch_model.bin").write_bytes(b"the same weights in another form, not to be downloaded")
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    with serving(published, frozenset({"owner/gated"})) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        download.cache_clear()
        yield server
        download.cache_clear()


def test_an_id_is_downloaded_converted_and_read(hub: Hub, tmp_path: Path) -> None:
    folder = checkpoint_folder(NAME)
    assert (folder / "LICENSE").read_text() == "DeepSeek model licence\n"
    assert not [line for line in hub.asked if "pytorch_model.bin" in line]
    model, processor = load(NAME)
    same, _ = load(str(tmp_path / "safe"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert processor.num_image_tokens == 16
    assert load("owner/bin")[0].num_codes == 64  # torch's own files, where there are no others


def test_a_processor_alone_downloads_no_weights(hub: Hub) -> None:
    assert load_processor(NAME).num_image_tokens == 16
    assert not [line for line in hub.asked if "safetensors" in line and line.startswith("GET /deepseek-ai")]


def test_what_was_downloaded_is_used_without_a_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = source_folder(NAME)
    hub.shutdown()
    hub.server_close()
    download.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert source_folder(NAME) == folder
    with pytest.raises(ValueError, match=r"no checkpoint at 'owner/bin'.*cannot be reached.*`hf download owner/bin`"):
        source_folder("owner/bin")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("owner/nothing", r"has no such model, or it is private"),
        ("owner/gated", r"licence must be accepted on its page.*hf auth login"),
    ],
)
def test_what_cannot_be_had_is_one_line(hub: Hub, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"no checkpoint at '{name}'.*{message}") as caught:
        checkpoint_folder(name)
    assert "\n" not in str(caught.value)


def test_no_network_at_all(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nothing listens
    with pytest.raises(ValueError, match=r"no checkpoint at 'owner/any'.*cannot be reached"):
        source_folder("owner/any")


def test_which_names_are_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert is_hub_id(NAME)
    for path in ("understanding", "runs/mine", "./a/b", "/a/b", "a/b/c", "a/../b", "a/", str(tmp_path)):
        assert not is_hub_id(path), path
