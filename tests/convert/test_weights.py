"""Files of weights: what is read, what is refused, and never more in memory than asked."""

from __future__ import annotations

import json
import pickle
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from published import TINY, weights, write_json, write_published
from unidecouple.convert.weights import Weights, save_shards


@pytest.mark.parametrize("form", ["safetensors", "bin", "shards"])
def test_headers_and_numbers(tmp_path: Path, form: str) -> None:
    expected = weights(TINY, seed=3)
    found = Weights(write_published(tmp_path / "c", form=form, seed=3))
    assert found.shapes.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found.shapes[name].shape, found.shapes[name].dtype, found.shapes[name].is_meta) == (
            tensor.shape,
            tensor.dtype,
            True,
        )
    some = list(expected)[::7]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.read(some).items())
    assert list(found.read(some[::-1])) == some[::-1]  # whatever file each lies in


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("executed",))


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": Malicious()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: .*nothing in a checkpoint is ever executed"):
        Weights(tmp_path)
    with (tmp_path / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"a": Malicious()}, file)
    with pytest.raises(ValueError, match="nothing in a checkpoint is ever executed"):
        Weights(tmp_path)
    assert capsys.readouterr().out == ""


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no weights in .*model\.safetensors.*pytorch_model\.bin"):
        Weights(tmp_path)
    save_file({"a": torch.ones(64)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="Is it truncated"):
        Weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    index = tmp_path / "model.safetensors.index.json"
    for weight_map, said in (
        ({"a": "../model.safetensors"}, "which is not in"),
        ({"a": "model-00001.safetensors"}, "which is not in"),
        ({"a": "model.safetensors", "b": "model.safetensors"}, r"lacks b, which model\.safetensors\.index\.json says"),
    ):
        write_json(index, {"weight_map": weight_map})
        with pytest.raises(ValueError, match=said):
            Weights(tmp_path)
    index.write_text("[]")
    with pytest.raises(ValueError, match="is no index of weights"):
        Weights(tmp_path)


def test_quantized_numbers_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="F8_E4M3"):
        Weights(tmp_path)


def test_shards_by_hand(tmp_path: Path) -> None:
    sizes = {"a": 3, "b": 3, "c": 9, "d": 2, "e": 4}
    parts = [{name: torch.full((sizes[name],), 1.0) for name in names} for names in ("ab", "c", "de")]
    shapes = {name: tensor.to("meta") for part in parts for name, tensor in part.items()}
    files = save_shards(tmp_path, shapes, iter(parts), max_bytes=4 * 6)
    assert files == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    where = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert [where[name][10] for name in "abcde"] == ["1", "1", "2", "3", "3"]
    assert {path.name for path in tmp_path.iterdir()} == {*files, "model.safetensors.index.json"}


def test_one_shard_and_one_part_are_in_memory(tmp_path: Path) -> None:
    alive: set[int] = set()
    most = 0

    def part(number: int) -> dict[str, torch.Tensor]:
        nonlocal most
        made = {f"{number}.{i}": torch.zeros(25) for i in range(3)}
        for name, tensor in made.items():
            alive.add(hash(name))
            weakref.finalize(tensor, alive.discard, hash(name))
        most = max(most, len(alive))
        return made

    shapes = {f"{number}.{i}": torch.zeros(25, device="meta") for number in range(9) for i in range(3)}
    files = save_shards(tmp_path, shapes, map(part, range(9)), max_bytes=400)
    assert len(files) == 7
    assert most == 3 + 3  # a shard of four lacks one, and the part that completes it is made


def test_shared_memory_is_written_twice(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    part = {"a": shared, "b": shared, "c": shared.view(2, 3).T}
    save_shards(tmp_path, {name: tensor.to("meta") for name, tensor in part.items()}, iter([dict(part)]), 10**9)
    assert all(torch.equal(tensor, part[name]) for name, tensor in Weights(tmp_path).read("abc").items())
