"""``data check`` finds every problem with its line, and ``data preview`` shows what the model is given, as a user meets them."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from own_data import asked, flat, write_jsonl, write_pictures, write_tar
from unidecouple.batch import Task
from unidecouple.cli import main
from unidecouple.data.build_sample import build
from unidecouple.data.check import check
from unidecouple.data.formats import open_readers
from unidecouple.data.pictures import ImagePreprocessor
from unidecouple.data.preview import token_spans, write_preview
from unidecouple.data.sequences import Sample, SequenceBuilder
from unidecouple.models.processing import UniJanusProcessor


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Five good records, three bad ones on lines 2, 4 and 5."""
    write_pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:99])
    entries = [
        asked(),
        asked("cut.png"),
        flat(),
        "{broken",
        flat("gone.png"),
        asked(None, "yes", "no"),
        flat("b.png"),
        asked("b.png"),
    ]
    return write_jsonl(tmp_path / "data.jsonl", entries)


def test_findings(source: Path, processor: UniJanusProcessor, builder: SequenceBuilder) -> None:
    seen = []
    preprocessor = ImagePreprocessor(processor)
    found = check(source, open_readers(source), preprocessor, builder, progress=lambda done, of: seen.append((done, of)))
    assert (found.formats, found.samples) == ({"messages": 1}, {"mmu": 2, "t2i": 2, "text": 1})
    assert (found.understood, found.generated, found.bad_ratio) == (2, 2, 3 / 8)
    assert [problem.partition(": ")[0] for problem in found.problems] == [f"{source}:{line}" for line in (2, 4, 5)]
    words = builder.conversation([("user", ["yes"]), ("assistant", ["no"])], Task.MMU)
    assert (found.lengths.total(), min(found.lengths)) == (5, len(words.input_ids))
    assert seen == [(number, 8) for number in range(1, 9)]
    assert not any(line.startswith("  edits") for line in found.lines())
    short = check(source, open_readers(source), preprocessor, builder, max_length=10)
    assert (short.samples, short.bad, short.too_long, len(short.problems)) == ({"text": 1}, 7, 4, 5)
    assert [*short.lines()][-1] == "    and 2 more"
    assert any("tokens are more than max_length=10" in problem for problem in short.problems)


def test_the_command_prints_them_and_fails(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(source)]) == 1
    printed = capsys.readouterr()
    for line in ("messages (1 file)", "mmu 2, t2i 2, text 1", "2 to be understood, 2 to be generated", "problems  3 (37.50%"):
        assert line in printed.out
    assert f"{source}:2: image {source.parent / 'cut.png'}: " in printed.out
    assert "more than --max-bad-ratio=0.01 is bad" in printed.err
    assert main(["data", "check", str(source), "--max-bad-ratio", "0.4"]) == 0
    assert main(["data", "check", str(source.parent / "gone.jsonl")]) == 1
    assert "no data at" in capsys.readouterr().err


def test_lengths_are_quantiles_of_actual_lengths(source: Path, processor: UniJanusProcessor, builder: SequenceBuilder) -> None:
    found = check(source, open_readers(source), ImagePreprocessor(processor), builder)
    values = [3] * 11 + [5] * 8 + [40]
    counted = replace(found, lengths=Counter(values))
    for share in (0.0, 0.5, 0.95, 1.0):
        assert counted.length_at(share) == np.quantile(values, share, method="nearest")
    assert "  tokens    min 3, median 3, p95 5, max 40" in [*counted.lines()]


def test_words_that_the_model_does_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [asked(None, "Is there a quagga", "dodo"), asked(None, "a cow", "quagga")])
    assert main(["data", "check", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "words     8 tokens of text, 3 of them unknown (37.50%)" in printed
    assert "unknown: 'quagga', 'dodo'" in printed
    assert re.search(r"warning: this model's tokenizer has \d+ words, and all others become one unknown word", printed)
    write_jsonl(path, [asked(None, "Is there a cow", "yes")])
    assert main(["data", "check", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "0 of them unknown (0.00%)" in printed
    assert "warning" not in printed


def test_records_that_training_and_validation_share(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By content: another name of the same image does not hide it."""
    folder = source.parent
    write_jsonl(folder / "train.jsonl", [asked(), asked(), asked("b.png"), flat()])
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    other = {"conversations": [{"from": "human", "value": "<image>Is there a cow in the image?"}, {"from": "gpt", "value": "yes"}]}
    write_jsonl(folder / "held.jsonl", [{**other, "image": "copy.png"}, flat("b.png")])
    assert main(["data", "check", str(folder / "train.jsonl"), str(folder / "held.jsonl")]) == 0
    printed = capsys.readouterr().out
    assert "repeated  1 records are equal to an earlier one" in printed
    assert f"shared    1 records with {folder / 'train.jsonl'}: none of them is held out" in printed


def test_a_source_without_records_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(write_tar(tmp_path / "a.tar", {"README": b"x"}))]) == 1
    assert "a.tar holds no record" in capsys.readouterr().err


def test_records_longer_than_the_model_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [asked(None, "cow " * 1100, "yes"), asked(None, "a cow", "yes")])
    assert main(["data", "check", str(path)]) == 1
    assert re.search(r"a.jsonl:1: 11\d\d tokens are more than max_length=1024", capsys.readouterr().out)


def test_help_does_not_import_torch() -> None:
    run = "try: c.main(['data', 'encode', '--help'])\nexcept SystemExit: pass"
    code = f"import sys, unidecouple.cli as c\n{run}\nassert 'torch' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--max-bad-ratio" in shown.stdout


def test_the_page(source: Path, processor: UniJanusProcessor, builder: SequenceBuilder) -> None:
    page = write_preview(
        open_readers(source), ImagePreprocessor(processor), builder, source.parent / "page.html", count=9
    ).read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 4
    sizes = {Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in pictures}
    assert sizes == {(16, 16)}  # as the model sees them
    assert page.count("<article>") == 5
    assert "http" not in page
    assert "<script" not in page
    for reason in ("cut.png", "gone.png"):
        assert reason in page[page.index("Could not be shown") :]
    assert '<span class="loss">yes &lt;eos&gt;</span>' in page
    assert '<span class="image_out">[16 tokens]</span>' in page


def test_words_of_users_are_escaped(tmp_path: Path, processor: UniJanusProcessor, builder: SequenceBuilder) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [asked(None, "<script>alert(1)</script>", "no")])
    page = write_preview(open_readers(path), ImagePreprocessor(processor), builder, tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_stretches_cover_every_token(builder: SequenceBuilder) -> None:
    picture = np.zeros((16, 16, 3), np.uint8)
    sample: Sample = builder.conversation([("user", [picture, "Where is the", picture]), ("assistant", ["left"])], Task.MMU)
    found = list(token_spans(sample, builder))
    assert [span.look for span in found] == ["context", "image_in", "context", "image_in", "context", "loss"]
    assert sum(span.count for span in found) == len(sample.input_ids)
    assert found[-1].text == "left <eos>"


def test_the_commands_of_preview_and_encode(source: Path, small_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, cache = source.parent / "page.html", source.parent / "cache"
    assert main(["data", "preview", str(source), "--output", str(page), "--samples", "1"]) == 0
    assert page.read_text().count("<article>") >= 1
    encode = ["data", "encode", str(source), "--model", str(small_base), "--output", str(cache)]
    assert main(encode) == 1
    assert "more than max_bad_ratio=0.01" in capsys.readouterr().err
    assert main([*encode, "--max-bad-ratio", "0.5"]) == 0
    assert "2 images of 16 tokens; 6 records left out" in capsys.readouterr().out
    assert main(["data", "check", str(cache)]) == 0
    assert "image_tokens (1 file)" in capsys.readouterr().out


def test_edits_are_counted_and_shown(tmp_path: Path, processor: UniJanusProcessor, builder: SequenceBuilder) -> None:
    write_pictures(tmp_path, "a.png", "b.png")
    path = write_jsonl(tmp_path / "a.jsonl", [flat("b.png", "a red cow") | {"source_image": "a.png"}, flat()])
    preprocessor = ImagePreprocessor(processor)
    found = check(path, open_readers(path), preprocessor, builder)
    assert (found.samples, found.understood, found.generated, found.edits) == ({"t2i": 2}, 1, 2, 1)
    assert "  edits     1 of the t2i samples generate an image from the user's images" in found.lines()
    (reader,) = open_readers(path)
    spans = [*token_spans(build(reader.record(0), preprocessor, builder), builder)]
    assert [span.look for span in spans] == ["context", "image_in", "context", "image_in", "context", "image_out"]
    page = write_preview([reader], preprocessor, builder, tmp_path / "page.html").read_text()
    assert page.count("data:image/png;base64,") == 3
