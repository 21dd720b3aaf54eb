"""Folders that something is wrong with: refused in one sentence, or used with what is wrong counted and told."""

import csv
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.in_process import Outcome, run
from tests.test_prepare import make_root
from vgjax.data.prepare import splits

COUNT = 24
HEADER = ["file_name", "text", "label", "mask"]
IDS = [f"images/p{number:02d}.png" for number in range(COUNT)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pathlib.Path:
    return make_root(tmp_path_factory.mktemp("whole") / "data", count=COUNT)


@pytest.fixture
def root(whole, tmp_path) -> pathlib.Path:
    return shutil.copytree(whole, tmp_path / "data")


def prepare(root: pathlib.Path, *flags: str, mode: str = "prepare") -> Outcome:
    own = (f"--config.data.root={root}", "--config.data.validation_fraction=0.2", f"--workdir={root.parent / 'run'}")
    return run("--config=configs/folder.py:smoke", f"--mode={mode}", *own, *flags)


def refused(ended: Outcome, match: str, root: pathlib.Path) -> None:
    """One sentence at the end, and no artefact."""
    assert ended.code == 2, ended
    assert ended.lines[-1].startswith("error: ") and match in ended.lines[-1], ended
    assert sum(line.startswith("error: ") for line in ended.lines) == 1
    assert not list(root.parent.glob("store/pictures-*/manifest.json"))


def told(ended: Outcome, match: str, root: pathlib.Path) -> dict:
    """Done and told, every picture accounted for; returns prepare_report.json."""
    assert ended.code == 0, ended
    assert match in "\n".join(ended.lines), ended
    found = json.loads(next(root.parent.glob("store/pictures-*/prepare_report.json")).read_text())
    assert found["present"] == found["used"] + found["skipped_pictures"]
    return found


def rows(root: pathlib.Path) -> list[list[str]]:
    with (root / "metadata.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


def table(root: pathlib.Path, lines: list[list[str]], header=HEADER, encoding="utf-8", delimiter=",") -> None:
    with (root / "metadata.csv").open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *lines])


def texts(root: pathlib.Path, text: str, **options) -> None:
    table(root, [[name, text, *rest] for name, _, *rest in rows(root)], **options)


def paint(root: pathlib.Path, folder: str, colour, numbers=range(COUNT)) -> None:
    for number in numbers:
        Image.new("RGB" if folder == "images" else "L", (60, 48), colour).save(root / folder / f"p{number:02d}.png")


def keep(root: pathlib.Path, count: int) -> None:
    """Leaves so many pictures."""
    for number in range(count, COUNT):
        (root / "images" / f"p{number:02d}.png").unlink()
        (root / "masks" / f"p{number:02d}.png").unlink()
    table(root, rows(root)[:count])


def lists(root: pathlib.Path, train: list[str], validation: list[str], test: list[str]) -> str:
    parts = {"train": train, "validation": validation, "test": test}
    splits.write(root.parent / "lists", {name: split for split, names in parts.items() for name in names})
    return f"--config.data.splits={root.parent / 'lists'}"


# ---------------------------------------------------------------- tables


def with_a_column_twice(root):
    table(root, [[*row, "other"] for row in rows(root)], header=[*HEADER, "text"])


def with_mixed_separators(root):
    lines = (root / "metadata.csv").read_text().split("\n")
    (root / "metadata.csv").write_text(
        "\n".join(line.replace(",", ";") if i % 2 else line for i, line in enumerate(lines))
    )


def as_a_pipe(root):
    (root / "metadata.csv").unlink()
    os.mkfifo(root / "metadata.csv")


def as_a_folder(root):
    (root / "metadata.csv").unlink()
    (root / "metadata.csv").mkdir()


def as_json_in_latin1(root):
    lines = [json.dumps({"file_name": name, "text": "L\xe4sion"}, ensure_ascii=False) for name, *_ in rows(root)]
    (root / "metadata.csv").unlink()
    (root / "metadata.jsonl").write_text("\n".join(lines), encoding="latin-1")


def beside_another(root):
    (root / "metadata.jsonl").write_text("{}")


REFUSED_TABLES = {
    "Latin-1": (lambda root: texts(root, "L\xe4sion", encoding="latin-1"), "metadata.csv' is not UTF-8"),
    "code page 1252": (lambda root: texts(root, "5 \u20ac", encoding="cp1252"), "metadata.csv' is not UTF-8"),
    "UTF-16": (lambda root: texts(root, "L\xe4sion", encoding="utf-16"), "metadata.csv' is not UTF-8"),
    "JSON lines in Latin-1": (as_json_in_latin1, "metadata.jsonl' is not UTF-8"),
    "a column twice": (with_a_column_twice, "has the column text twice"),
    "semicolons": (lambda root: table(root, rows(root), delimiter=";"), "no column file_name, text"),
    "tabs": (lambda root: table(root, rows(root), delimiter="\t"), "no column file_name, text"),
    "nothing": (lambda root: (root / "metadata.csv").write_text(""), "(it has none)"),
    "zeros": (lambda root: (root / "metadata.csv").write_bytes(bytes(999)), "no column file_name, text"),
    "a header alone": (lambda root: table(root, []), "holds no usable picture"),
    "no header": (lambda root: table(root, rows(root)[1:], header=rows(root)[0]), "no column file_name, text"),
    "names of other pictures": (
        lambda root: table(root, [["q" + name, *rest] for name, *rest in rows(root)]),
        "48 skipped, the first: qp00.png: row without image",
    ),
    "another extension": (
        lambda root: table(root, [[name.replace("png", "jpg"), *rest] for name, *rest in rows(root)]),
        "the first: p00.jpg: row without image",
    ),
    "no extension": (
        lambda root: table(root, [[name[:-4], *rest] for name, *rest in rows(root)]),
        "the first: p00: row without image",
    ),
    "names in capitals": (
        lambda root: table(root, [[name.upper(), *rest] for name, *rest in rows(root)]),
        "the first: P00.PNG: row without image",
    ),
    "another split": (
        lambda root: table(root, [[*row, "dev"] for row in rows(root)], header=[*HEADER, "split"]),
        "unknown split 'dev'",
    ),
    "splits in some rows": (
        lambda root: table(root, [[*row, "train" * (i % 2)] for i, row in enumerate(rows(root))], [*HEADER, "split"]),
        "12 of 24 pictures have no official split",
    ),
    "a pipe": (as_a_pipe, "is no file inside"),
    "a folder": (as_a_folder, "is no file inside"),
    "two tables": (beside_another, "keep one of them"),
    "words of no letter": (lambda root: texts(root, "..."), "no training caption holds a word"),
}


@pytest.mark.parametrize("kind", REFUSED_TABLES)
def test_tables_that_are_refused(root, kind):
    make, match = REFUSED_TABLES[kind]
    make(root)
    ended = prepare(root)
    if kind == "words of no letter":  # pictures are whole, their words are not
        shutil.rmtree(next(root.parent.glob("store/pictures-*[0-9a-f]")))
    refused(ended, match, root)


TOLD_TABLES = {
    "a byte order mark": (lambda root: texts(root, "L\xe4sion", encoding="utf-8-sig"), "same caption", {}),
    "mixed separators": (with_mixed_separators, "row without image (12), image without row (12)", {"used": 12}),
    "rows twice": (lambda root: table(root, rows(root) + rows(root)[:5]), "row twice (5)", {"used": COUNT}),
    "some names in capitals": (
        lambda root: table(root, [[name.replace("p0", "P0"), *rest] for name, *rest in rows(root)]),
        "row without image (10), image without row (10)",
        {"used": 14},
    ),
    "a row of no picture": (
        lambda root: table(root, [*rows(root), ["x" * 300 + ".png", "", "", ""], ["\0", "", "", ""]]),
        "row without image (2)",
        {"used": COUNT},
    ),
    "a row that leads outside": (
        lambda root: table(root, [*rows(root), ["../../etc/passwd", "", "", ""], ["/etc/passwd", "", "", ""]]),
        "outside the root (2)",
        {"used": COUNT},
    ),
    "a text beyond all measure": (
        lambda root: table(
            root, [[name, "x " * (20_001 * (name == "p00.png")), *rest] for name, _, *rest in rows(root)]
        ),
        "caption too long (1)",
        {"used": COUNT - 1},
    ),
    "a mask that is not there": (
        lambda root: table(root, [[*row[:3], "none.png" if row[0] == "p00.png" else row[3]] for row in rows(root)]),
        "no mask (1)",
        {"used": COUNT - 1},
    ),
    "no text": (lambda root: texts(root, ""), "24 of 24 pictures have no text", {"used": COUNT}),
    "one word": (lambda root: texts(root, "disc"), "all training pictures have the same caption", {"used": COUNT}),
    "one class": (
        lambda root: table(root, [[name, text, "a", mask] for name, text, _, mask in rows(root)]),
        "all training pictures have the same class",
        {"used": COUNT},
    ),
    "no Latin letters": (lambda root: texts(root, "\u75c5\u53d8"), "the same caption", {"used": COUNT}),
}


@pytest.mark.parametrize("kind", TOLD_TABLES)
def test_tables_that_are_told_of(root, kind):
    make, match, counts = TOLD_TABLES[kind]
    make(root)
    found = told(prepare(root), match, root)
    assert counts.items() <= found.items()


# ---------------------------------------------------------------- captions files and lists of splits


def captions(root: pathlib.Path, ids: list[str], end: str = "") -> str:
    lines = [json.dumps({"id": name, "caption": f"A mark, like {name}."}) for name in ids]
    (root.parent / "captions.jsonl").write_text("\n".join([*lines, end]))
    return f"--config.data.captions_file={root.parent / 'captions.jsonl'}"


OTHER_IDS = {
    "none": [],
    "of another dataset": ["ISIC_1", "ISIC_2"],
    "less their folder": [name.removeprefix("images/") for name in IDS],
    "in capitals": [name.upper() for name in IDS],
    "of another extension": [name.replace("png", "jpg") for name in IDS],
}


@pytest.mark.parametrize("kind", OTHER_IDS)
def test_captions_of_no_picture_are_refused_before_any_is_decoded(root, kind):
    ended = prepare(root, captions(root, OTHER_IDS[kind]))
    refused(ended, f"has {len(OTHER_IDS[kind])} captions and none of them is of one of the 24 pictures", root)
    assert "'images/p00.png'" in ended.lines[-1]
    assert not list(root.parent.glob("store/*/parts"))


@pytest.mark.parametrize("end", ["", '{"id": "images/p2', "\n\n"])
def test_captions_of_some_pictures_are_counted(root, end):
    flag = captions(root, [*IDS[:20], "IMAGES/P21.PNG"], end)
    told(prepare(root, flag), "20 of 24 pictures have a caption there, and 1 captions have no picture", root)


def test_lists_of_other_pictures_are_refused_before_any_is_decoded(root):
    other = lists(root, IDS[:9], IDS[9:11], IDS[11:13])
    refused(prepare(root, other), "lack 11 of 24 pictures, the first: 'images/p13.png'", root)
    assert not list(root.parent.glob("store/*/parts"))


# ---------------------------------------------------------------- too little


def test_what_is_equal_is_one_group(root):
    shutil.copy(root / "images" / "p00.png", root / "images" / "p05.png")
    assert told(prepare(root), "", root)["groups"] == COUNT - 1


TOO_LITTLE = {
    "one picture": (lambda root: keep(root, 1), "of 1 usable pictures in 1 group(s)"),
    "two pictures": (lambda root: keep(root, 2), "of 2 usable pictures in 2 group(s)"),
    "three pictures": (lambda root: keep(root, 3), "1 different one(s) fall into the split train, which needs 2"),
    "all black": (lambda root: paint(root, "images", 0), "of 24 usable pictures in 1 group(s)"),
    "all white": (lambda root: paint(root, "images", "white"), "of 24 usable pictures in 1 group(s)"),
    "blank in several colours": (
        lambda root: [paint(root, "images", (9 * n, 0, 99), [n]) for n in range(COUNT)],
        "of 24 usable pictures in 1 group(s)",
    ),
    "two that repeat": (
        lambda root: [shutil.copy(root / IDS[n % 2], root / IDS[n]) for n in range(2, COUNT)],
        "of 24 usable pictures in 2 group(s)",
    ),
    "one patient": (
        lambda root: table(root, [[*row, "P1"] for row in rows(root)], header=[*HEADER, "group"]),
        "of 24 usable pictures in 1 group(s)",
    ),
    "no picture": (lambda root: shutil.rmtree(root / "images"), "holds no"),
    "nothing but broken ones": (
        lambda root: [(root / name).write_bytes(b"") for name in IDS],
        "24 of 24 pictures cannot be used, the first: images/p00.png: empty file",
    ),
    "too many broken ones": (
        lambda root: [(root / name).write_bytes(b"x") for name in IDS[:2]],
        "2 of 24 pictures cannot be used",
    ),
}


@pytest.mark.parametrize("kind", TOO_LITTLE)
def test_too_little_is_told_before_training(root, kind):
    make, match = TOO_LITTLE[kind]
    make(root)
    refused(prepare(root, mode="run"), match, root)


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_training_pictures_that_are_all_equal(root, folder):
    """In spite of lists that put equal pictures on all sides."""
    paint(root, folder, 0)
    flag = lists(root, IDS[:12], IDS[12:18], IDS[18:])
    if folder == "images":
        refused(prepare(root, flag), "1 different one(s) fall into the split train, which needs 2", root)
    else:
        told(prepare(root, flag), "all training pictures have the same empty mask", root)


def test_one_level_of_a_factor(root):
    disc = np.zeros((48, 60), np.uint8)
    disc[10:30, 20:40] = 255
    for name in IDS:
        Image.fromarray(disc).save(root / name.replace("images", "masks"))
    ended = prepare(root, "--config.data.captions=measured")
    told(ended, "all training pictures have the same position, size, shape, border: nothing can be learned", root)


# ---------------------------------------------------------------- names, places, disks


def test_names_that_no_record_can_hold(root):
    longest = "y" * 251 + ".png"
    for name in ("line\nbreak.png", longest, os.fsdecode(b"\xff.png")):
        shutil.copy(root / IDS[0], root / "images" / name)
    table(root, [*rows(root), ["line\nbreak.png", "one", "", ""], [longest, "two", "", ""]])
    assert told(prepare(root), "name is not UTF-8 (1)", root)["used"] == COUNT + 2


def test_a_workdir_inside_the_dataset(root):
    ended = run("--config=configs/folder.py:smoke", f"--config.data.root={root}", f"--workdir={root / 'runs' / 'one'}")
    refused(ended, "name a --workdir and --store elsewhere", root)
