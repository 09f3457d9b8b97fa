"""A checkpoint that is not what its config.json and tokenizer say is one clear error, before anything of its size is made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from unidecouple.batch import Task
from unidecouple.convert.convert import convert
from unidecouple.convert.load import checkpoint_folder, load, load_processor, load_shapes
from unidecouple.convert.steps import Conversion
from unidecouple.generate.one_task import load_one_task
from unidecouple.train.export import export

NORM = "model.language_model.norm.weight"


@pytest.fixture
def broken(ours: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a tiny checkpoint with fields of config.json or weights changed."""

    def change(config: Callable[[dict[str, Any]], None] | None = None, **weights: torch.Tensor) -> Path:
        folder = tmp_path / "broken"
        shutil.copytree(ours, folder)
        if config is not None:
            raw = json.loads((folder / "config.json").read_text())
            config(raw)
            (folder / "config.json").write_text(json.dumps(raw))
        if weights:
            tensors = load_file(ours / "model.safetensors")
            save_file(tensors | {name.replace("__", "."): tensor for name, tensor in weights.items()}, folder / "model.safetensors")
        return folder

    return change


@pytest.mark.parametrize(
    ("part", "field", "value", "said"),
    [
        ("text_config", "num_hidden_layers", 10**9, "is above 10,000"),
        ("text_config", "num_hidden_layers", 9_999, r"num_hidden_layers=9999, but .* weights in all"),
        ("text_config", "num_hidden_layers", -1, "config.json"),
        ("text_config", "vocab_size", 10**12, r"but by config\.json it must be \(1000000000000, "),
        ("text_config", "hidden_size", 10**10, "config.json"),
        ("text_config", "intermediate_size", 10**30, "config.json"),
        ("text_config", "num_attention_heads", 0, "cannot read|does not describe a model"),
        ("text_config", "hidden_size", None, "cannot read|does not describe a model"),
        ("text_config", "ffn", "none", "does not describe a model"),
        ("vision_config", "num_hidden_layers", 9_999, "weights in all"),
        ("vision_config", "image_size", 10**9, "config.json"),
        ("vq_config", "num_res_blocks", 9_999, "weights in all"),
        ("vq_config", "num_embeddings", 10**12, r"must be \(1000000000000, "),
    ],
)
def test_sizes_that_the_file_does_not_have(broken: Any, part: str, field: str, value: Any, said: str) -> None:
    folder = broken(lambda raw: raw[part].__setitem__(field, value))
    with pytest.raises(ValueError, match=said):
        load(str(folder))


def test_a_weight_of_another_shape(broken: Any, tmp_path: Path) -> None:
    folder = broken(model__language_model__norm__weight=torch.ones(3))
    said = rf"{NORM} in .* is of shape \(3,\), but by config\.json it must be"
    for read in (load, load_shapes, lambda name: load_one_task(name, Task.T2I), lambda name: export(Path(name), tmp_path / "out")):
        with pytest.raises(ValueError, match=said):
            read(str(folder))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(broken: Any, ours: Path, tmp_path: Path, number: float) -> None:
    norm = load_file(ours / "model.safetensors")[NORM]
    norm[-1] = number
    folder = broken(model__language_model__norm__weight=norm)
    said = f"has NaN or infinite numbers in {NORM}"
    with pytest.raises(ValueError, match=said):
        load(str(folder))
    with pytest.raises(ValueError, match=said):
        load_one_task(str(folder), Task.MMU)
    with pytest.raises(ValueError, match=said):
        convert(folder, tmp_path / "out", Conversion(), lambda line: None)
    assert not (tmp_path / "out").exists()


def test_export_refuses_what_half_precision_cannot_hold(broken: Any, ours: Path, tmp_path: Path) -> None:
    name = "model.vqmodel.quantize.embedding.weight"
    codes = load_file(ours / "model.safetensors")[name].float()
    codes[0, 0] = 1e6
    with pytest.raises(ValueError, match=f"in float16, has NaN or infinite numbers in {name}"):
        export(broken(**{name.replace(".", "__"): codes}), tmp_path / "out")


def test_more_tokens_than_word_embeddings(broken: Any, tmp_path: Path) -> None:
    folder = broken()
    rows = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([f"<new{number}>" for number in range(rows - tokenizer.get_vocab_size() + 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    said = rf"numbers its tokens up to {rows} \('<new\d+>'\), but by config\.json the model has {rows} word embeddings"
    for read in (load, load_shapes, load_processor):
        with pytest.raises(ValueError, match=said):
            read(str(folder))
    with pytest.raises(ValueError, match=said):
        convert(folder, tmp_path / "out", Conversion(), lambda line: None)


def test_a_checkpoint_and_an_adapter_in_one_folder(broken: Any) -> None:
    folder = broken()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds a whole checkpoint \(config\.json\) and an adapter"):
        checkpoint_folder(str(folder))


def test_licences_travel(broken: Any, tmp_path: Path) -> None:
    folder = broken()
    names = {"LICENSE-MODEL", "LICENSE-CODE", "MODEL_LICENSE.txt", "NOTICE", "COPYING.LESSER", "licence.md"}
    for name in (*names, "README.md", "notes.txt"):
        (folder / name).write_text(name)
    out = export(folder, tmp_path / "out")
    assert {file.name for file in out.iterdir() if file.read_bytes() == file.name.encode()} == names


def test_config_json_is_read_once(small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    text = Path.read_text

    def counted(path: Path, *given: Any, **named: Any) -> str:
        read.append(path)
        return text(path, *given, **named)

    monkeypatch.setattr(Path, "read_text", counted)
    load(str(small_base))
    convert(small_base, tmp_path / "out", Conversion(to="transformers"), lambda line: None)
    assert read.count(small_base / "config.json") == 2  # one for each
