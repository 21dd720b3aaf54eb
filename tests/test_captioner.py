import importlib.util
import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vgjax.config import ConfigError
from vgjax.data.caption import captioner
from vgjax.data.prepare import builder
from vgjax.data.read.tables import read_captions
from vgjax.types import SPLITS


class FakePipeline:
    """Stands in for transformers' pipeline: names the red of each picture; can be told to fail.

    Attributes:
      asked: (reds, prompts) of each call.
      faults: red -> how often it makes a call fail; -1 for always.
    """

    def __init__(self, chat: bool = True, faults: dict[int, int] | None = None):
        self.processor = types.SimpleNamespace(chat_template="{{ messages }}" if chat else None)
        self.asked: list[tuple[list[int], list[str]]] = []
        self.faults = dict(faults or {})

    def __call__(self, images=None, text=None, *, max_new_tokens, return_full_text, batch_size) -> list[Any]:
        assert max_new_tokens == 96 and return_full_text is False
        if images is None:
            contents = [chat[0]["content"] for chat in text]
            assert all(chat[0]["role"] == "user" and len(chat) == 1 for chat in text)
            images = [part["image"] for content in contents for part in content if part["type"] == "image"]
            text = [part["text"] for content in contents for part in content if part["type"] == "text"]
        reds = [image.getpixel((0, 0))[0] for image in images]
        assert len(images) == len(text) == batch_size and all(image.mode == "RGB" for image in images)
        self.asked.append((reds, text))
        for red in reds:
            if self.faults.get(red, 0):
                self.faults[red] -= 1
                raise RuntimeError(f"out of memory at {red}")
        results = [{"input_text": "...", "generated_text": f" red\n {red} " if red else " "} for red in reds]
        return [[result] for result in results] if self.processor.chat_template else results


def picture(red: int, label: str = "") -> captioner.Picture:
    return captioner.Picture(f"p{red}", lambda: Image.new("L", (4, 4), red), label)


def run(path: Path, pictures, pipeline, **options) -> captioner.Outcome:
    return captioner.run(pictures, pipeline, path, "m", **({"prompt": "What?", "batch": 3} | options))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "captions.jsonl"


@pytest.mark.parametrize("chat", [True, False])
def test_captions_are_written_in_batches_and_read_back(path, chat):
    pipeline = FakePipeline(chat)
    outcome = run(path, [picture(n) for n in range(1, 8)], pipeline)
    assert outcome == (7, 0, ())
    assert [reds for reds, _ in pipeline.asked] == [[1, 2, 3], [4, 5, 6], [7]]
    assert read_captions(path) == {f"p{n}": f"red {n}" for n in range(1, 8)}
    first = json.loads(path.read_text().splitlines()[0])
    assert first == {"id": "p1", "caption": "red 1", "model": "m", "prompt": "What?"}


def test_a_second_run_asks_for_what_is_missing_only(path):
    run(path, [picture(1), picture(2)], FakePipeline())
    before = path.read_bytes()
    pipeline = FakePipeline()
    assert run(path, [picture(n) for n in (1, 2, 3)], pipeline) == (1, 2, ())
    assert [reds for reds, _ in pipeline.asked] == [[3]]
    assert path.read_bytes().startswith(before) and path.read_bytes().count(b"\n") == 3
    assert run(path, [picture(n) for n in (1, 2, 3)], pipeline) == (0, 3, ())


@pytest.mark.parametrize("cut", [1, 5, 30, 60])
def test_a_last_line_cut_short_is_dropped_and_done_again(path, cut):
    run(path, [picture(n) for n in (1, 2, 3)], FakePipeline())
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert set(read_captions(path)) == ({"p1", "p2"} if cut > 1 else {"p1", "p2", "p3"})
    run(path, [picture(n) for n in (1, 2, 3)], FakePipeline())
    assert path.read_bytes() == whole


def test_a_failing_batch_costs_only_its_culprit(path):
    pipeline = FakePipeline(faults={2: -1, 5: 2})
    outcome = run(path, [picture(n) for n in (1, 2, 3, 4, 5, 6)], pipeline)
    assert outcome.written == 5
    assert outcome.failed == (("p2", "RuntimeError: out of memory at 2"),)
    assert "p2" not in read_captions(path) and read_captions(path)["p5"] == "red 5"
    assert sum(2 in reds for reds, _ in pipeline.asked) == 3  # once in the batch, twice alone
    assert run(path, [picture(2)], FakePipeline()) == (1, 0, ())  # the next run tries again


def test_silence_and_unreadable_pictures_are_failures(path):
    def broken() -> Image.Image:
        raise OSError("truncated")

    pipeline = FakePipeline()
    outcome = run(path, [picture(0), captioner.Picture("bad", broken), picture(3)], pipeline, attempts=2)
    assert outcome.written == 1
    assert set(outcome.failed) == {("p0", "the model said nothing"), ("bad", "cannot be read: truncated")}
    assert len(pipeline.asked) == 2


def test_wrong_numbers_of_answers_are_not_attributed_to_anyone(path):
    outcome = run(path, [picture(1), picture(2)], answers_one)
    assert outcome.written == 2 and read_captions(path) == {"p1": "x1", "p2": "x1"}


def answers_one(images, text, **options) -> list[dict[str, str]]:
    return [{"generated_text": f"x{len(images)}"}]


def test_the_label_reaches_the_model_only_where_the_prompt_asks(path, tmp_path):
    pipeline = FakePipeline()
    run(path, [picture(1, "malignant")], pipeline)
    assert pipeline.asked[0][1] == ["What?"]
    run(tmp_path / "b.jsonl", [picture(1, "malignant"), picture(2)], pipeline, prompt="A {label} {thing}?")
    assert pipeline.asked[1][1] == ["A malignant {thing}?", "A unknown {thing}?"]
    assert captioner.LABEL not in captioner.PROMPT


def test_captions_of_another_model_or_prompt_are_not_mixed(path):
    run(path, [picture(1)], FakePipeline())
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="with prompt 'What\\?': name another --output"):
        run(path, [picture(2)], FakePipeline(), prompt="Why?")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b'{"id": "a", "caption": "x"}\nnonsense\n{"id": "b", "caption": "y"}\n', "line 2 is not a JSON object"),
        (b'{"id": 3, "caption": "x"}\n', "line 1 is not a JSON object"),
        (b'{"id": "a"}\n', "line 1 is not"),
        (b'["a", "x"]\n', "line 1 is not"),
        (b'{"id": "a", "caption": "x"}\n{"id": "a", "caption": "y"}\n', "second caption of 'a'"),
        (b"\xff\n", "line 1 is not"),
        (b"[" * 100_000 + b"\n", "line 1 is not"),
        (b'{"id": "a", "caption": "\\ud800"}\n', "line 1 is not"),
    ],
)
def test_wrong_files_of_captions_are_refused(tmp_path, data, complaint):
    (tmp_path / "c.jsonl").write_bytes(data)
    with pytest.raises(ConfigError, match=complaint):
        read_captions(tmp_path / "c.jsonl")


def test_files_made_by_others_are_read(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes('\ufeff{"id": "a", "caption": "ü"}\r\n\r\n{"id": "b", "caption": "y", "more": 1}'.encode())
    assert read_captions(path) == {"a": "ü", "b": "y"}
    with pytest.raises(ConfigError, match="cannot read"):
        read_captions(tmp_path / "absent.jsonl")


def folder(root: Path, count: int = 3) -> Path:
    (root / "images").mkdir(parents=True)
    for n in range(1, count + 1):
        Image.new("RGB", (16, 16), (n, 0, 0)).save(root / "images" / f"p{n}.png")
    return root


def test_the_command_captions_a_folder(tmp_path, capsys):
    output = tmp_path / "c.jsonl"
    arguments = [f"--root={folder(tmp_path / 'data')}", "--model=m", f"--output={output}"]
    assert captioner.main(arguments, load=lambda model: FakePipeline()) == 0
    assert sorted(read_captions(output).values()) == ["red 1", "red 2", "red 3"]
    ids = set(read_captions(output))
    assert "3 captions written" in capsys.readouterr().out
    assert captioner.main(arguments, load=lambda model: FakePipeline()) == 0
    assert "0 captions written, 3 were there" in capsys.readouterr().out
    output.unlink()
    assert captioner.main(arguments, load=lambda model: FakePipeline(faults={2: -1})) == 1
    assert "out of memory at 2" in capsys.readouterr().out
    assert len(ids - set(read_captions(output))) == 1


def png(red: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_command_captions_prepared_records(tmp_path):
    mask = io.BytesIO()
    Image.new("L", (4, 4)).save(mask, "PNG")
    blank = {
        "caption": "",
        "label": "",
        "group": "",
        "factors": {},
        "named": (),
        "wordings": {},
        "mask": mask.getvalue(),
    }
    parts = zip(SPLITS, ((1, 2), (3,), (4,)), strict=True)
    builder.write(
        tmp_path, "busi", {split: [blank | {"id": f"p{n}", "image": png(n)} for n in reds] for split, reds in parts}
    )
    arguments = ["--source=busi", f"--records={tmp_path}", "--model=m", f"--output={tmp_path / 'c.jsonl'}"]
    assert captioner.main(arguments, load=lambda model: FakePipeline()) == 0
    assert read_captions(tmp_path / "c.jsonl") == {f"p{n}": f"red {n}" for n in (1, 2, 3, 4)}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--root=absent"], "absent"),
        (["--root=absent", "--source=no_such"], "--source is 'no_such'"),
        (["--root=absent", "--source=../x"], "--source is '../x'"),
        (["--records=absent"], "cannot be opened"),
        (["--root=absent", "--batch=0"], "at least 1"),
    ],
)
def test_the_command_refuses_in_one_sentence(tmp_path, capsys, arguments, complaint):
    output = tmp_path / "c.jsonl"
    assert captioner.main([*arguments, "--model=m", f"--output={output}"], load=lambda model: FakePipeline()) == 2
    message = capsys.readouterr().err
    assert complaint in message and message.count("\n") == 1 and not output.exists()


def test_without_torch_the_remedy_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    with pytest.raises(ConfigError, match="PyTorch, which is not installed: pip install torch"):
        captioner.load_model("m")


def test_the_model_is_taken_offline_and_a_bad_one_is_named(monkeypatch):
    calls = []

    def pipeline(task, model):
        calls.append((task, model))
        raise OSError("m is not a local folder\nand so on")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(pipeline=pipeline))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(ConfigError, match=r"'m' cannot be loaded \(m is not a local folder\)"):
        captioner.load_model("m")
    assert calls == [("image-text-to-text", "m")]
    assert captioner.os.environ["HF_HUB_OFFLINE"] == "1"
