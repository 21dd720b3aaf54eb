import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from vgjax.config import ConfigError
from vgjax.data.entries import Entry, Index
from vgjax.data.read import tables
from vgjax.data.sources.folder import SOURCE


def make(root: Path, *names: str) -> Path:
    """Files without pixels, which no source decodes."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"pixels")
    return root


def table(path: Path, *rows: dict[str, Any]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)


def entries(root: Path) -> dict[str, Entry]:
    return {entry.id: entry for entry in SOURCE.index(str(root)).entries}


def skips(index: Index) -> list[tuple[str, str, bool]]:
    return [(skip.path, skip.reason, skip.picture) for skip in index.skipped]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
@pytest.mark.parametrize(("images", "home"), [("images/", ""), ("", ""), ("images/", "images/")])
def test_a_table_beside_its_pictures_or_above_images(tmp_path, name, images, home):
    root = make(tmp_path / "d", f"{images}a.png", f"{images}sub/b.JPG", "masks/a.png", "masks/other.png")
    table(
        root / home / name,
        {
            "file_name": "a.png",
            "text": "A  small\nlesion.",
            "label": "x",
            "mask": "a.png",
            "group": "p1",
            "split": "test",
        },
        {"file_name": "sub/b.JPG", "text": "", "label": "", "mask": "", "group": "", "split": ""},
    )
    assert entries(root) == {
        f"{images}a.png": Entry(
            id=f"{images}a.png",
            image=root / images / "a.png",
            masks=(root / "masks" / "a.png",),
            text="A small lesion.",
            label="x",
            group="p1",
            split="test",
        ),
        f"{images}sub/b.JPG": Entry(id=f"{images}sub/b.JPG", image=root / images / "sub/b.JPG"),
    }
    index = SOURCE.index(str(root))
    assert skips(index) == [("masks/other.png", "mask without image", False)]
    assert index.present == 2


def test_a_table_among_the_pictures_names_masks_from_its_own_folder_too(tmp_path):
    names = ("a.png", "b.png", "c.png", "c_mask.png")
    root = make(tmp_path / "d", *(f"train/images/{name}" for name in names), "train/masks/a.png", "train/b_mask.png")
    masks = {"a.png": "../masks/a.png", "b.png": "b_mask.png", "c.png": "c_mask.png"}
    rows = [{"file_name": name, "text": "", "mask": mask} for name, mask in masks.items()]
    table(root / "train" / "images" / "metadata.csv", *rows)
    found = {entry.image.name: entry.masks for entry in entries(root).values()}
    assert found == {
        "a.png": (root / "train/masks/a.png",),
        "b.png": (root / "train/b_mask.png",),
        "c.png": (root / "train/images/c_mask.png",),
    }


def test_a_root_that_is_called_images_has_its_masks_inside(tmp_path):
    root = make(tmp_path / "images", "a.png", "masks/a.png")
    make(tmp_path, "masks/a.png")
    table(root / "metadata.csv", {"file_name": "a.png", "text": "", "mask": "a.png"})
    assert entries(root)["a.png"].masks == (root / "masks" / "a.png",)


def test_split_folders_with_tables_of_their_own(tmp_path):
    root = make(tmp_path / "d", "train/a.png", "train/masks/a.png", "validation/images/a.png", "test/a.png")
    table(root / "train" / "metadata.csv", {"file_name": "a.png", "text": "one"})
    table(root / "validation" / "metadata.jsonl", {"file_name": "a.png", "text": "two"})
    table(root / "test" / "metadata.csv", {"file_name": "a.png", "text": "three", "split": "test"})
    found = entries(root)
    assert {(entry.split, entry.text) for entry in found.values()} == {
        ("train", "one"),
        ("validation", "two"),
        ("test", "three"),
    }
    assert found["train/a.png"].masks == (root / "train" / "masks" / "a.png",)


def test_one_table_for_all_split_folders(tmp_path):
    root = make(tmp_path / "d", "train/a.png", "test/a.png")
    table(root / "metadata.csv", {"file_name": "train/a.png", "text": "1"}, {"file_name": "test/a.png", "text": "2"})
    assert [(entry.id, entry.split) for entry in entries(root).values()] == [
        ("test/a.png", "test"),
        ("train/a.png", "train"),
    ]


def test_without_a_table_every_picture_is_an_entry(tmp_path):
    root = make(
        tmp_path / "d", "images/a.png", "images/x/b.tif", "masks/a.tif", "masks/x/b.png", "train/c.nii.gz", "notes.gz"
    )
    found = entries(root)
    assert {name: (entry.masks, entry.text, entry.split) for name, entry in found.items()} == {
        "images/a.png": ((root / "masks/a.tif",), "", ""),
        "images/x/b.tif": ((root / "masks/x/b.png",), "", ""),
        "train/c.nii.gz": ((), "", "train"),
    }


def test_a_picture_without_mask_where_others_have_one_is_skipped(tmp_path):
    root = make(tmp_path / "d", "a.png", "b.png", "masks/a.png")
    assert skips(SOURCE.index(str(root))) == [("b.png", "no mask", True)]


def test_a_mask_is_looked_for_in_masks_first(tmp_path):
    root = make(tmp_path / "d", "a.png", "b.png", "masks/b.png")
    table(root / "metadata.csv", {"file_name": "a.png", "text": "", "mask": "b.png"})
    index = SOURCE.index(str(root))
    assert index.entries[0].masks == (root / "masks" / "b.png",)
    assert skips(index) == [("b.png", "image without row", True)]


def test_masks_may_lie_anywhere_and_are_no_pictures(tmp_path):
    root = make(tmp_path / "d", "a.png", "outlines/a1.png", "outlines/a2.png", "b.png")
    table(
        root / "metadata.jsonl",
        {"file_name": "a.png", "text": "x", "mask": ["outlines/a1.png", "outlines/a2.png"]},
        {"file_name": "b.png", "text": "y", "mask": None},
    )
    index = SOURCE.index(str(root))
    assert [len(entry.masks) for entry in index.entries] == [2, 0]
    assert (index.present, index.skipped) == (2, ())


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
@pytest.mark.parametrize(
    ("file_name", "reason"),
    [
        ("absent.png", "row without image"),
        ("", "row without image"),
        ("masks/a.png", "row without image"),
        ("notes.txt", "row without image"),
        ("a.png\0", "row without image"),
        ("x" * 100_000, "row without image"),
        ("../secret.png", "outside the root"),
        ("images/../../secret.png", "outside the root"),
        ("../" * 50 + "etc/passwd", "outside the root"),
        ("{home}/a.png", "outside the root"),
        ("a.png", "row twice"),
        ("./sub/../a.png", "row twice"),
    ],
)
def test_rows_that_name_no_picture_of_their_own(tmp_path, name, file_name, reason):
    root = make(tmp_path / "d", "a.png", "masks/a.png", "notes.txt")
    make(tmp_path, "secret.png")
    rows = {"file_name": "a.png", "text": "first"}, {"file_name": file_name.format(home=root), "text": "second"}
    table(root / name, *rows)
    index = SOURCE.index(str(root))
    assert [(skip.reason, skip.picture) for skip in index.skipped] == [(reason, False)]
    assert [(entry.id, entry.text) for entry in index.entries] == [("a.png", "first")]


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        ("absent.png", "no mask"),
        ("../secret.png", "outside the root"),
        ("/etc/hostname", "outside the root"),
        ("link.png", "outside the root"),
        ("circle.png", "not a file"),
    ],
)
def test_a_bad_mask_costs_its_picture(tmp_path, mask, reason):
    root = make(tmp_path / "d", "a.png", "b.png", "masks/a.png")
    make(tmp_path, "secret.png")
    (root / "masks" / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "masks" / "circle.png").symlink_to(root / "masks" / "circle.png")
    table(
        root / "metadata.csv", {"file_name": "a.png", "text": "", "mask": "a.png"}, {"file_name": "b.png", "mask": mask}
    )
    index = SOURCE.index(str(root))
    assert [entry.id for entry in index.entries] == ["a.png"]
    assert ("b.png", reason, True) in skips(index) and index.present == 2


def test_bad_files_are_accounted_for(tmp_path):
    root = make(tmp_path / "d", "a.png", "__MACOSX/._a.png", "._a.png", "unnamed.png")
    make(tmp_path, "secret.png", "elsewhere/e.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "broken.png").symlink_to(root / "absent.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "round").symlink_to(root)
    (root / "folder.png").mkdir()
    os.mkfifo(root / "pipe.png")
    make(root, os.fsdecode(b"\xff.png"))
    names = ("a.png", "link.png", "broken.png", "loop.png", "pipe.png", "linked/e.png")
    table(root / "metadata.csv", *({"file_name": name, "text": ""} for name in names))
    index = SOURCE.index(str(root))
    assert [entry.id for entry in index.entries] == ["a.png"]
    assert sorted(skips(index)) == [
        ("broken.png", "not a file", True),
        ("link.png", "outside the root", True),
        ("linked/e.png", "row without image", False),
        ("loop.png", "not a file", True),
        ("pipe.png", "not a file", True),
        ("unnamed.png", "image without row", True),
        ("\ufffd.png", "name is not UTF-8", True),
    ]


def test_text_is_made_one_line_and_may_not_be_endless(tmp_path):
    root = make(tmp_path / "d", *(f"{name}.png" for name in "abcd"))
    texts = {"a": ' "quoted",\r\n\ttext\ufffd\x00here ', "b": "x" * 20_000, "c": "x" * 20_001, "d": "y" * 100_000}
    table(root / "metadata.csv", *({"file_name": f"{name}.png", "text": text} for name, text in texts.items()))
    index = SOURCE.index(str(root))
    assert {entry.id: len(entry.text) for entry in index.entries} == {"a.png": 19, "b.png": 20_000}
    assert index.entries[0].text == '"quoted", text here'
    assert skips(index) == [("c.png", "caption too long", True), ("d.png", "caption too long", True)]


def test_a_field_beyond_all_measure_costs_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_FIELD", 1_000)
    root = make(tmp_path / "d", "a.png", "b.png", "c.png")
    table(root / "metadata.csv", *({"file_name": f"{name}.png", "text": "x" * size} for name, size in
                                   [("a", 10), ("b", 2_000), ("c", 10)]))  # fmt: skip
    index = SOURCE.index(str(root))
    assert [entry.id for entry in index.entries] == ["a.png", "c.png"]
    assert skips(index) == [("metadata.csv:3", "unreadable row", False), ("b.png", "image without row", True)]


@pytest.mark.parametrize(
    "line",
    [
        "[1, 2]",
        '"a.png"',
        "{broken",
        "null",
        "[" * 100_000,
        '{"file_name": ["a.png"], "text": "x"}',
        '{"file_name": "a.png", "text": {"en": "x"}}',
        '{"file_name": "a.png", "text": "x", "mask": [1]}',
        '{"file_name": "a.png", "text": "x", "text": "y"}',
        '{"file_name": "a.png", "text": ' + "9" * 10_000 + "}",
    ],
)
def test_odd_lines_of_json_are_counted(tmp_path, line):
    root = make(tmp_path / "d", "a.png", "b.png")
    (root / "metadata.jsonl").write_text(f'\ufeff{{"file_name": "b.png", "text": "fine"}}\n\n{line}\n')
    index = SOURCE.index(str(root))
    assert [entry.id for entry in index.entries] == ["b.png"]
    assert skips(index) == [("metadata.jsonl:3", "unreadable row", False), ("a.png", "image without row", True)]


def test_values_of_json_become_words(tmp_path):
    root = make(tmp_path / "d", "a.png")
    line = '{"file_name": "a.png", "text": "\\ud800 x", "label": 3, "group": NaN, "home": {}, "split": null}'
    (root / "metadata.jsonl").write_text(line)
    (entry,) = entries(root).values()
    assert (entry.text, entry.label, entry.group, entry.split) == ("x", "3", "", "")


def test_a_byte_order_mark_line_ends_and_short_rows(tmp_path):
    root = make(tmp_path / "d", "a.png", "b.png")
    lines = "file_name, text ,label\r\na.png,na\xefve,x,more\r\n\r\nb.png\r\n"
    (root / "metadata.csv").write_bytes(lines.encode("utf-8-sig"))
    found = entries(root)
    assert found["a.png"].text == "na\xefve"
    assert (found["a.png"].label, found["b.png"].text) == ("x", "")
    assert SOURCE.index(str(root)).skipped == ()


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("metadata.csv", "", r"no column file_name, text \(it has none\)"),
        ("metadata.csv", "file_name,caption\na.png,x\n", r"no column text \(it has file_name, caption\)"),
        ("metadata.csv", "file_name\ttext\na.png\tx\n", "no column file_name, text"),
        ("metadata.jsonl", "", "no key file_name, text in any line"),
        ("metadata.jsonl", '{"file_name": "a.png"}', "no key text in any line"),
        (
            "metadata.csv",
            "file_name,text,split\na.png,x,val\n",
            "unknown split 'val' .metadata.csv row 1.: write train",
        ),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "", "split": "dev"}', "unknown split 'dev'"),
        ("train/metadata.csv", "file_name,text,split\nc.png,x,test\n", "split 'test' of a picture in folder 'train'"),
        ("val/metadata.csv", "file_name,text\n", "in a folder that is no split: name the folder train, validation or"),
        ("val/images/metadata.csv", "file_name,text\n", "in a folder that is no split"),
    ],
)
def test_what_is_wrong_with_a_whole_table_is_one_error(tmp_path, name, text, complaint):
    root = make(tmp_path / "d", "a.png", "train/c.png", "val/images/b.png")
    (root / name).write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        SOURCE.index(str(root))


def test_two_tables_and_tables_that_are_no_files_are_refused(tmp_path):
    root = make(tmp_path / "d", "a.png", "metadata.csv", "metadata.jsonl")
    with pytest.raises(ConfigError, match="keep one of them"):
        SOURCE.check(str(root))
    (root / "metadata.csv").unlink()
    make(root, "images/metadata.csv")
    with pytest.raises(ConfigError, match=rf"'{root}' holds metadata.jsonl and images/metadata.csv: keep one of them"):
        SOURCE.check(str(root))
    (root / "images" / "metadata.csv").unlink()
    (root / "metadata.jsonl").unlink()
    make(tmp_path, "metadata.csv")
    for spoil in (
        lambda: (root / "metadata.csv").symlink_to(tmp_path / "metadata.csv"),
        lambda: (root / "metadata.csv").symlink_to(root / "metadata.csv"),
        lambda: os.mkfifo(root / "metadata.csv"),
        lambda: (root / "metadata.csv").mkdir(),
    ):
        spoil()
        with pytest.raises(ConfigError, match="is no file inside"):
            SOURCE.index(str(root))
        if (root / "metadata.csv").is_dir():
            (root / "metadata.csv").rmdir()
        else:
            (root / "metadata.csv").unlink()


def test_wrong_layouts_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="is empty"):
        SOURCE.check("")
    with pytest.raises(ConfigError, match="no folder"):
        SOURCE.check(str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="holds no picture"):
        SOURCE.check(str(make(tmp_path / "d", "notes.txt", "__MACOSX/a.png")))
    with pytest.raises(ConfigError, match=r"holds no usable picture \(1 skipped"):
        (tmp_path / "e").mkdir()
        (tmp_path / "e" / "a.png").symlink_to("/etc/hostname")
        SOURCE.index(str(tmp_path / "e"))


def test_real_pictures_without_a_table(data_root):
    root = data_root / "kvasir-seg" / "Kvasir-SEG"
    index = SOURCE.index(str(root))
    assert (len(index.entries), index.present, index.skipped) == (800, 800, ())
    assert all(entry.masks == (root.resolve() / "masks" / entry.image.name,) for entry in index.entries)
