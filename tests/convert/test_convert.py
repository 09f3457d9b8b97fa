"""Whole conversions: bit-exact round trips, what is refused before anything is written, and what is written and said."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from decoder_kinds import KINDS
from published import TINY, shapes, weights, write_json, write_published
from unidecouple.cli import main
from unidecouple.convert.load import load
from unidecouple.convert.names import unused
from unidecouple.models.configuration import UniJanusConfig
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.ownership import mark

Convert = Callable[..., Path]
Tensors = Callable[[Path], dict[str, torch.Tensor]]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


@pytest.mark.slow
@settings(
    max_examples=5,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    form=st.sampled_from(["safetensors", "bin", "shards"]),
    seed=st.integers(0, 2**16),
    path=st.lists(st.sampled_from(["unidecouple", "transformers", "deepseek"]), max_size=3),
    size=st.sampled_from([10**9, 300_000, 60_000]),
)
def test_round_trips_are_bit_exact(
    converted: Convert, tensors_of: Tensors, dtype: torch.dtype, form: str, seed: int, path: list[str], size: int
) -> None:
    """From deepseek-ai's layout through any others and back; only what Janus does not use is lost, to zeros."""
    with tempfile.TemporaryDirectory() as folder:
        here = write_published(Path(folder) / "start", dtype, form, seed)
        for number, layout in enumerate([*path, "deepseek"]):
            here = converted(here, Path(folder) / str(number), to=layout, max_shard_bytes=size)
        back, start = tensors_of(here), weights(TINY, seed, dtype)
    expected = {name: torch.zeros_like(tensor) if unused(name) else tensor for name, tensor in start.items()}
    assert same(back, expected)


def test_every_layout_says_the_same(ours: Path, plain: Path, converted: Convert, tensors_of: Tensors, tmp_path: Path) -> None:
    assert same(tensors_of(ours), tensors_of(plain))
    again = converted(converted(ours, tmp_path / "a", to="transformers"), tmp_path / "b")
    for name in ("config.json", "processor_config.json", "tokenizer.json", "generation_config.json"):
        assert json.loads((again / name).read_text()) == json.loads((ours / name).read_text()), name
    for name in ("LICENSE", "README.md", "chat_template.jinja"):
        assert (again / name).read_text() == (ours / name).read_text()


def test_numbers_by_hand(published: Path, ours: Path, tensors_of: Tensors) -> None:
    """A fused projection's thirds are q, k, v; positions lose their first axis; the rest is what it was."""
    theirs, mine = tensors_of(published), tensors_of(ours)
    fused = theirs["vision_model.vision_tower.blocks.0.attn.qkv.weight"]
    prefix = "model.vision_model.encoder.layers.0.self_attn"
    for third, projection in enumerate(("q_proj", "k_proj", "v_proj")):
        assert torch.equal(mine[f"{prefix}.{projection}.weight"], fused[32 * third : 32 * third + 32])
    positions = mine["model.vision_model.embeddings.position_embedding.weight"]
    assert torch.equal(positions, theirs["vision_model.vision_tower.pos_embed"][0])
    assert torch.equal(
        mine["model.vqmodel.decoder.mid.block_2.conv1.weight"], theirs["gen_vision_model.decoder.mid.2.conv1.weight"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_decoder_of_ours_is_copied_as_it_is(
    make_model: Callable[..., UniJanusForConditionalGeneration],
    save: Callable[..., Path],
    converted: Convert,
    tensors_of: Tensors,
    tmp_path: Path,
    kind: dict[str, Any],
) -> None:
    source = save(make_model(**kind))
    copy = converted(source, tmp_path / "copy", max_shard_bytes=100_000)
    assert same(tensors_of(copy), tensors_of(source))
    before, after = (UniJanusConfig(**json.loads((folder / "config.json").read_text())) for folder in (source, copy))
    assert after.to_dict() == before.to_dict()


def test_shards_have_an_index(ours: Path, converted: Convert, tensors_of: Tensors, tmp_path: Path) -> None:
    split = converted(ours, tmp_path / "split", max_shard_bytes=200_000)
    files = sorted(split.glob("model-*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert all(sum(t.nbytes for t in load_file(file).values()) <= 200_000 for file in files)
    index = json.loads((split / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors_of(ours).values())
    assert all(name in load_file(split / file) for name, file in index["weight_map"].items())
    assert same(tensors_of(split), tensors_of(ours))
    assert same(load(str(split))[0].state_dict(), load(str(ours))[0].state_dict())


def broken(published: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    shutil.copytree(published, folder)
    kept = load_file(folder / "model.safetensors")
    change(kept)
    save_file(kept, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("aligner.layers.2.bias", "drop", r"lacks aligner\.layers\.2\.bias, which must be of shape \(32,\)"),
        (
            "vision_model.vision_tower.blocks.0.attn.qkv.bias",
            "drop",
            r"lacks vision_model\.vision_tower\.blocks\.0\.attn\.qkv\.bias",
        ),
        ("language_model.lm_head.weight", "drop", r"lacks language_model\.lm_head\.weight"),
        ("gen_aligner.layers.4.bias", "add", r"has gen_aligner\.layers\.4\.bias, which a model of its config"),
        ("mm_projector.weight", "add", r"unexpected weight mm_projector\.weight"),
        ("gen_embed.weight", "grow", r"gen_embed\.weight in .* is of shape \(65, 8\), but by config.json it must be \(64, 8\)"),
    ],
)
def test_what_does_not_fit_is_refused_before_writing(
    published: Path, converted: Convert, tmp_path: Path, name: str, change: str, said: str
) -> None:
    def apply(kept: dict[str, torch.Tensor]) -> None:
        old = kept.pop(name, torch.zeros(3, dtype=torch.bfloat16))
        if change != "drop":
            kept[name] = old if change == "add" else torch.cat([old, old[:1]])

    source = broken(published, tmp_path / "broken", apply)
    with pytest.raises(ValueError, match=said):
        converted(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]


def test_a_tied_text_head_is_written_out(plain: Path, converted: Convert, tensors_of: Tensors, tmp_path: Path) -> None:
    source = broken(plain, tmp_path / "tied", lambda kept: kept.pop("lm_head.weight"))
    raw = json.loads((source / "config.json").read_text())
    with pytest.raises(ValueError, match=r"lacks lm_head\.weight"):
        converted(source, tmp_path / "out")
    raw.pop("tie_word_embeddings")  # transformers' own default is true
    write_json(source / "config.json", raw)
    out = converted(source, tmp_path / "out")
    assert torch.equal(tensors_of(out)["lm_head.weight"], tensors_of(out)["model.language_model.embed_tokens.weight"])
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


def test_other_models_are_named(published: Path, converted: Convert, tmp_path: Path) -> None:
    source = tmp_path / "other"
    shutil.copytree(published, source)
    for change, said in (
        ({"model_type": "llava"}, r"model_type 'llava': Janus and Emu3 have one of .*multi_modality"),
        ({"aligner_config": {"params": {"projector_type": "linear", "n_embed": 32}}}, "projector_type='linear'"),
        ({"vision_config": {"params": {"model_name": "siglip_so400m_patch14_384"}}}, "so400m.* is not Janus's siglip_large"),
        ({"gen_head_config": {"params": {"n_embed": 32, "image_token_embed": 64}}}, r"widths \[32, 64\]"),
        ({"gen_vision_config": {}}, "lacks 'params'"),
    ):
        write_json(source / "config.json", json.loads((published / "config.json").read_text()) | change)
        with pytest.raises(ValueError, match=said):
            converted(source, tmp_path / "out")
    (source / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*config\.json"):
        converted(source, tmp_path / "out")


def test_onto_what_should_stay(ours: Path, converted: Convert, tmp_path: Path) -> None:
    for target in (ours, ours.parent):
        with pytest.raises(ValueError, match="which is read, or a folder around it"):
            converted(ours, target)
    (tmp_path / "thesis.txt").write_text("unsaved elsewhere")
    with pytest.raises(ValueError, match=r"holds thesis\.txt, which unidecouple did not write"):
        converted(ours, tmp_path)
    assert (tmp_path / "thesis.txt").is_file()
    converted(converted(ours, tmp_path / "out"), tmp_path / "again")
    converted(tmp_path / "again", tmp_path / "out")  # an earlier result is replaced


def test_a_fault_while_writing_leaves_what_was_there(
    published: Path, converted: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "config.json").write_text("kept")
    mark(target)  # an earlier result

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unidecouple.convert.convert.write_processor", fail)
    with pytest.raises(OSError, match="Earlier files are intact"):
        converted(published, target)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (target / "config.json").read_text() == "kept"


def test_the_command(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(tmp_path / "out")
    options = [
        "--structure",
        "ta_moe",
        "--experts-per-group",
        "1",
        "--moe-layers",
        "1",
        "--context-router",
        "--max-shard-size",
        "1MB",
    ]
    assert main(["convert", str(published), "--output", target, *options]) == 0
    shown = capsys.readouterr().out
    total = sum(tensor.numel() for tensor in weights(TINY).values())
    assert f"deepseek layout, {len(shapes(TINY))} tensors, {total:,} numbers, {2 * total:,} bytes, dense" in shown
    assert "dropped, since Janus does not use them: 14" in shown
    assert (
        "upcycled to ta_moe: 3 names gone, 12 new" in shown
    )  # two stacks, shared expert's three, alpha, gate, context router's five
    assert "2 group(s) of 1/1 experts, top 1, a shared expert in 1 of 2 layers" in shown
    assert "carried along: LICENSE, README.md" in shown
    assert load(target)[0].config.text_config.moe_layers == [1]
    for options, said in (
        (["--to", "transformers"], "ffn='ta_moe'"),
        (["--moe-layers", "1"], "--moe-layers has no effect with --structure None"),
        (["--structure", "moe", "--context-router"], "--context-router has no effect with --structure moe"),
        (["--structure", "dense", "--no-shared-expert"], "--no-shared-expert has no effect with --structure dense"),
    ):
        assert main(["convert", target, "--output", str(tmp_path / "no"), *options]) == 1
        assert said in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "nowhere"), "--output", target]) == 1
    assert "config.json" in capsys.readouterr().err
