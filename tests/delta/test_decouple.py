"""``unidecouple decouple`` from end to end: every mode, what it writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moved_weights import MakeTuned, moved
from own_data import asked, flat, write_jsonl, write_pictures
from unidecouple.batch import Task
from unidecouple.cli import main
from unidecouple.convert.load import load
from unidecouple.data.sequences import SequenceBuilder, collate
from unidecouple.delta.decouple import DecoupleOptions, decouple
from unidecouple.delta.distill import Distillation
from unidecouple.delta.forms import Fidelity
from unidecouple.world.text import passage_sample


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_pictures(folder, "0.png", "1.png")
    lines = [asked(f"{n}.png", "Is there a cow in the image?", "yes") for n in range(2)]
    write_jsonl(folder / "held_out.jsonl", [*lines, flat("0.png", "a red cow"), flat("1.png", "a blue pig")])
    return folder / "held_out.jsonl"


def run(base: Path, tuned: Path, target: Path, *words: str) -> int:
    return main(["decouple", str(base), str(tuned), "--output", str(target), "--device", "cpu", *words])


def test_the_default_is_a_residual_of_rank_32(base: Path, tuned: Path, tmp_path: Path) -> None:
    """Rank 32 of matrices 32 wide would be larger than they are, so they are kept whole."""
    assert run(base, tuned, tmp_path / "made") == 0
    about = json.loads((tmp_path / "made" / "decouple.json").read_text())
    forms = about["settings"]["task_deltas"]["t2i"]
    assert forms["layers.0.self_attn.q_proj"] == "full"
    assert forms["embed_tokens"] == "rows:3"
    assert about["settings"]["fidelity"]["rank"] == 32
    assert run(base, tuned, tmp_path / "made", "--rank", "2") == 0  # replaces what it wrote
    assert load(str(tmp_path / "made"))[0].config.text_config.task_deltas["t2i"]["layers.0.mlp.up_proj"] == "rank:2"


def test_interpolation_and_reverts(base: Path, tuned: Path, tmp_path: Path) -> None:
    before, after = load_file(base / "model.safetensors"), load_file(tuned / "model.safetensors")
    assert run(base, tuned, tmp_path / "half", "--mode", "interpolate", "--alpha", "0.25") == 0
    for name, weight in load_file(tmp_path / "half" / "model.safetensors").items():
        torch.testing.assert_close(weight, before[name] + 0.25 * (after[name] - before[name]))
    assert run(base, tuned, tmp_path / "reverted", "--mode", "revert", "--groups", "attention 0, vision") == 0
    for name, weight in load_file(tmp_path / "reverted" / "model.safetensors").items():
        back = name.startswith(("model.vision_model.", "model.aligner.", "model.language_model.layers.0.self_attn."))
        assert torch.equal(weight, (before if back else after)[name]), name
    load(str(tmp_path / "half"))


@pytest.mark.slow
def test_choices_by_data(base: Path, make_tuned: MakeTuned, data: Path, tmp_path: Path) -> None:
    """With a wide tolerance generation's best alpha is chosen; the front has every form and a suggestion."""
    start, moves = load_file(base / "model.safetensors"), ("generation_head", "layers.0.self_attn", "layers.1.mlp")
    tuned = make_tuned(
        tmp_path / "tuned",
        change=lambda state: state.update({name: start[name] for name in start if not any(part in name for part in moves)}),
    )
    chosen = DecoupleOptions("interpolate", data=(str(data),), samples=2, tolerance=100.0, cache=tmp_path)
    lines: list[str] = []
    decouple(str(base), str(tuned), tmp_path / "alpha", chosen, lines.append)
    losses = {float(line.split()[1].strip(":")): float(line.rsplit(" ", 1)[1]) for line in lines if "mmu loss" in line}
    alpha = json.loads((tmp_path / "alpha" / "decouple.json").read_text())["settings"]["alpha"]
    assert losses[alpha] == min(losses.values())
    words = ("--mode", "front", "--data", str(data), "--samples", "2", "--cache", str(tmp_path))
    assert run(base, tuned, tmp_path / "front", *words) == 0
    front = json.loads((tmp_path / "front" / "front.json").read_text())
    points = {point["name"]: point for point in front["points"]}
    assert {"rank 2", "rank 4", "bits", "full", "alpha 0.5", "reverted 1"} <= points.keys()
    assert points["rank 2"]["extra_bytes"] < points["rank 4"]["extra_bytes"] < points["full"]["extra_bytes"]
    assert points["rank 2"]["losses"]["mmu"] == points["full"]["losses"]["mmu"] == pytest.approx(points["alpha 0"]["losses"]["mmu"])
    assert points["full"]["losses"]["t2i"] == pytest.approx(points["alpha 1"]["losses"]["t2i"])
    assert points["bits"]["extra_bytes"] < points["rank 2"]["extra_bytes"]
    assert front["suggested"]["name"] in points
    assert (tmp_path / "front" / "front.html").read_text().count("<svg") == 2
    made = tmp_path / "made"
    rank = ("--rank", "2")
    assert run(base, tuned, made, *rank) == 0
    stored = sum(tensor.nbytes for name, tensor in load_file(made / "model.safetensors").items() if ".deltas." in name)
    assert points["rank 2"]["extra_bytes"] == stored


@pytest.mark.slow
def test_a_front_has_benchmark_scores(small_base: Path, small_cache: Path, tmp_path: Path) -> None:
    """Understanding's are the base's in every form with weights per task."""
    shutil.copytree(small_base, tmp_path / "tuned")
    state, name = load_file(small_base / "model.safetensors"), "model.language_model.layers.0.mlp.up_proj.weight"
    save_file(state | {name: state[name] + 0.05}, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    words = ("--mode", "front", "--data", "synthetic", "--samples", "2", "--cache", str(small_cache), "--benchmarks", "vqa")
    assert run(small_base, tmp_path / "tuned", tmp_path / "front", *words, "--limit", "2", "--num-images", "1") == 0
    front = json.loads((tmp_path / "front" / "front.json").read_text())
    scores = {point["name"]: point["scores"] for point in front["points"]}
    (vqa,) = scores["full"]
    assert scores["rank 2"][vqa] == scores["bits"][vqa] == scores["full"][vqa] == scores["alpha 0"][vqa]
    assert f"<th>{vqa}</th>" in (tmp_path / "front" / "front.html").read_text()


def test_distillation_comes_nearer_and_leaves_understanding(base: Path, tuned: Path, tmp_path: Path) -> None:
    how = Distillation(steps=30, prompts=("a red cow", "a blue pig and a cup"), learning_rate=3e-3)
    lines: list[str] = []
    for name, distillation in (("plain", None), ("distilled", how)):
        options = DecoupleOptions(fidelity=Fidelity(rank=1), distillation=distillation)
        decouple(str(base), str(tuned), tmp_path / name, options, lines.append)
    gaps = [float(line.split("divergence ")[1].split()[0]) for line in lines if "divergence" in line]
    assert gaps[-1] < 0.7 * gaps[0]
    plain, distilled = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "distilled"))
    assert all(torch.equal(plain[name], distilled[name]) == (".deltas." not in name or name.endswith(".rows")) for name in plain)


def test_other_families_are_interpolated(tmp_path: Path) -> None:
    for name, factor in (("a", 1.0), ("b", 1.5)):
        (tmp_path / name).mkdir()
        save_file({"model.layers.0.mlp.up_proj.weight": factor * torch.eye(4)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text('{"model_type": "bagel"}')
    assert run(tmp_path / "a", tmp_path / "b", tmp_path / "made", "--mode", "interpolate", "--alpha", "0.5") == 0
    assert torch.equal(load_file(tmp_path / "made" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"], 1.25 * torch.eye(4))
    assert (tmp_path / "made" / "config.json").is_file()
    with pytest.raises(ValueError, match=r"of a family that this package does not run.*--mode"):
        decouple(str(tmp_path / "a"), str(tmp_path / "b"), tmp_path / "other")


def test_options_that_do_not_fit(base: Path, tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="alpha has no effect with mode 'residual'"):
        DecoupleOptions(alpha=0.5)
    with pytest.raises(ValueError, match="benchmarks has no effect with mode 'residual'"):
        DecoupleOptions(benchmarks=("pope",))
    with pytest.raises(ValueError, match=r"mode 'interpolate' chooses on held-out data: give it \(--data\)"):
        decouple(str(base), str(tuned), tmp_path / "made", DecoupleOptions("interpolate"))
    with pytest.raises(ValueError, match="no module group 'visio': there are"):
        decouple(str(base), str(tuned), tmp_path / "made", DecoupleOptions("revert", groups=("visio",)))
    options = DecoupleOptions(fidelity=Fidelity(rank=2), protect=Task.T2I, distillation=Distillation(1, ("a cow",)))
    with pytest.raises(ValueError, match="here generation is the base's"):
        decouple(str(base), str(tuned), tmp_path / "made", options)
    with pytest.raises(ValueError, match="protect has no effect with understanding"):
        DecoupleOptions(understanding=str(tuned), protect=Task.T2I)
    (tmp_path / "prompts.txt").write_text("a cow")
    assert run(base, tuned, tmp_path / "made", "--prompts", str(tmp_path / "prompts.txt")) == 1  # without --distill-steps
    with pytest.raises(ValueError, match=r"has the weights of .*: no weight changed.*Name the fine-tuned model"):
        decouple(str(base), str(base), tmp_path / "made")
    with pytest.raises(ValueError, match=r"has the weights of .*: no weight changed"):
        decouple(str(base), str(tuned), tmp_path / "made", DecoupleOptions(understanding=str(base)))
    assert not (tmp_path / "made").exists()


@torch.no_grad()
def test_a_base_made_from_a_language_model(language_base: Path, tmp_path: Path) -> None:
    """Grouped key/value heads: text has the base's logits and image tokens the tuned model's, bit for bit."""
    shutil.copytree(language_base, tmp_path / "tuned")
    state = moved(load_file(language_base / "model.safetensors"), 1)
    save_file(state, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    assert run(language_base, tmp_path / "tuned", tmp_path / "made", "--full") == 0
    made, before, after = (load(str(path))[0] for path in (tmp_path / "made", language_base, tmp_path / "tuned"))
    forms = made.config.text_config.task_deltas["t2i"]
    assert forms["layers.1.self_attn.k_proj"] == "full"
    builder = SequenceBuilder(load(str(language_base))[1])
    text = collate([passage_sample(builder, "A red cat sits on the mat.")], 0)
    said = [model.lm_head(model.decode_batch(text).last_hidden_state) for model in (made, before, after)]
    assert torch.equal(said[0], said[1])
    assert not torch.allclose(said[0], said[2])
    image = collate([builder.generation("a red cat", range(builder.num_image_tokens))], 0)
    drawn = [model.image_logits(model.decode_batch(image).last_hidden_state)[:, 1:] for model in (made, after, before)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])
