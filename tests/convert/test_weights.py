"""Files of weights: what is read, what is refused, and never more in memory than asked."""

from __future__ import annotations

import json
import math
import pickle
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from published import TINY, weights, write_json, write_published
from unidecouple.convert.weights import Weights, check_finite, save_shards


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
    for content in ("{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {}}'):
        index.write_text(content)
        with pytest.raises(ValueError, match="is no index of weights"):
            Weights(tmp_path)
    index.write_text("[]")
    with pytest.raises(ValueError, match="does not contain a JSON object"):
        Weights(tmp_path)


def sharded(folder: Path, *shards: dict[str, torch.Tensor], **weight_map: str) -> Path:
    """Shards named 0.safetensors, … and their index, by ``weight_map`` or by what each holds."""
    folder.mkdir(exist_ok=True)
    for number, shard in enumerate(shards):
        save_file(shard, folder / f"{number}.safetensors")
    held = {name: f"{number}.safetensors" for number, shard in enumerate(shards) for name in shard}
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map or held})
    return folder


def test_the_index_decides_where_a_weight_is_read(tmp_path: Path) -> None:
    stray = {"b": torch.ones(2), "a": torch.zeros(2), "c": torch.zeros(3)}
    folder = sharded(tmp_path, {"a": torch.ones(2)}, stray, a="0.safetensors", b="1.safetensors")
    found = Weights(folder)
    assert set(found.shapes) == {"a", "b"}
    assert found.read(["a"])["a"].tolist() == [1, 1]


def test_two_sets_of_weights_are_refused(tmp_path: Path) -> None:
    sharded(tmp_path, {"a": torch.ones(2)})
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    assert Weights(tmp_path).read(["a"])["a"].tolist() == [1, 1]  # safetensors first, as transformers
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"two sets of weights, model\.safetensors\.index\.json and model\.safetensors"):
        Weights(tmp_path)
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": {"a": "model.safetensors"}})
    assert Weights(tmp_path).read(["a"])["a"].tolist() == [0, 0]


def test_an_index_does_not_leave_its_folder(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "outside.safetensors")
    for name in (str(tmp_path / "outside.safetensors"), "../outside.safetensors", ".", "", "x\0y", "in/../../outside.safetensors"):
        with pytest.raises(ValueError, match="which is not in"):
            Weights(sharded(tmp_path / "c", a=name))
    (tmp_path / "c" / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(ValueError, match=r"is a link out of its folder, to .*outside\.safetensors"):
        Weights(sharded(tmp_path / "c", a="link.safetensors"))


def test_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "1"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    save_file({"a": torch.ones(2)}, blobs / "0123")
    (snapshot / "0.safetensors").symlink_to("../../blobs/0123")
    assert Weights(sharded(snapshot, a="0.safetensors")).read(["a"])["a"].tolist() == [1, 1]


def test_headers_that_lie_are_named(tmp_path: Path) -> None:
    def entry(*offsets: int, shape: Sequence[int] = (2,)) -> dict[str, object]:
        return {"dtype": "F32", "shape": shape, "data_offsets": offsets}

    headers: list[dict[str, object]] = [
        {"a": entry(0, 8), "b": entry(4, 12)},
        {"a": entry(0, 4096)},
        {"a": entry(0, 8, shape=(10**18,))},
        {"a": entry(8, 0)},
        {"a": entry(0, 8, shape=(-2,))},
        {"a": {"dtype": "F32"}},
    ]
    contents = [len(text).to_bytes(8, "little") + text + bytes(12) for text in (json.dumps(h).encode() for h in headers)]
    contents += [b"", b"\xff" * 8, (2**62).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]", b"x" * 100]
    for content in contents:
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot read .*model\.safetensors"):
            Weights(tmp_path)


def test_what_is_not_finite_is_named(tmp_path: Path) -> None:
    for number in (math.nan, math.inf, -math.inf):
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            save_file({"a": torch.tensor([1, number, 2]).to(dtype), "b": torch.ones(3)}, tmp_path / "model.safetensors")
            found = Weights(tmp_path)
            found.read(["b"])
            with pytest.raises(ValueError, match=r"model\.safetensors has NaN or infinite numbers in a: training diverged"):
                found.read(["b", "a"])
    largest = torch.full((9,), torch.finfo(torch.float16).max, dtype=torch.float16)
    check_finite({"a": largest, "none": torch.empty(0), "count": torch.tensor(3)}, "here")  # sums to infinity
    with pytest.raises(ValueError, match="what is to be written has NaN"):
        save_shards(tmp_path, {"a": torch.empty(1, device="meta")}, iter([{"a": torch.tensor([math.nan])}]), 10**9)


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
