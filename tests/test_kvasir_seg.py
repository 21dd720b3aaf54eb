"""Kvasir-SEG as a source. The files hold no pictures: a source that decoded one would fail here."""

import functools
import os
from pathlib import Path

import pytest

from tests.source_checks import reasons, refused_by
from vgjax.config import ConfigError
from vgjax.data.entries import SUFFIXES, Index, find
from vgjax.data.sources.kvasir_seg import SOURCE


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def root(tmp_path) -> Path:
    root = tmp_path / "above" / "Kvasir-SEG"
    for name in ("cja", "cjb", "cjc", "cjd"):
        touch(root / "images" / f"{name}.jpg")
        touch(root / "masks" / f"{name}.jpg")
    (root / "kavsir_bboxes.json").write_text("no JSON at all")
    return root


def read(root: Path) -> Index:
    """An index whose promises are kept, and kept twice."""
    index = SOURCE.index(str(root))
    assert index == SOURCE.index(str(root))
    pictures = [p for p in find(root, SUFFIXES) if p.relative_to(root).parts[0] != "masks"]
    assert index.present == len(pictures) == len(index.entries) + sum(skip.picture for skip in index.skipped)
    assert [entry.id for entry in index.entries] == sorted(entry.id for entry in index.entries)
    return index


def ids(index: Index) -> list[str]:
    return [entry.id for entry in index.entries]


refused = functools.partial(refused_by, SOURCE)


def test_every_picture_of_the_real_copy_is_used(data_root):
    root = data_root / "kvasir-seg" / "Kvasir-SEG"
    SOURCE.check(str(root))
    index = SOURCE.index(str(root))
    assert (len(index.entries), index.present, index.skipped) == (800, 800, ())
    for entry in index.entries:
        assert entry.image == (root / "images" / f"{entry.id}.jpg").resolve()
        assert entry.masks == ((root / "masks" / f"{entry.id}.jpg").resolve(),)
        assert (entry.text, entry.label, entry.group, entry.split) == ("", "polyp", "", "")


def test_entries_pair_images_with_masks(root):
    index = read(root)
    assert ids(index) == ["cja", "cjb", "cjc", "cjd"]
    assert index.entries[1].image == root / "images" / "cjb.jpg"
    assert index.entries[1].masks == (root / "masks" / "cjb.jpg",)
    assert {entry.label for entry in index.entries} == {"polyp"}
    assert index.skipped == ()


def test_suffixes_may_differ_and_be_upper_case(root):
    (root / "images" / "cja.jpg").rename(root / "images" / "cja.JPG")
    (root / "masks" / "cjb.jpg").rename(root / "masks" / "cjb.Png")
    assert ids(read(root)) == ["cja", "cjb", "cjc", "cjd"]


def test_what_has_no_partner_is_skipped(root):
    (root / "masks" / "cja.jpg").unlink()
    (root / "images" / "cjb.jpg").unlink()
    index = read(root)
    assert ids(index) == ["cjc", "cjd"]
    assert reasons(index) == {"images/cja.jpg": "no mask", "masks/cjb.jpg": "mask without image"}


def test_doubles_and_strays_are_skipped(root):
    touch(root / "images" / "more" / "cja.png")
    touch(root / "masks" / "cja.png")
    touch(root / "cover.jpg")
    index = read(root)
    assert len(index.entries) == 4
    assert reasons(index) == {
        "images/more/cja.png": "same image twice",
        "masks/cja.png": "same mask twice",
        "cover.jpg": "not in images or masks",
    }


def test_what_macos_adds_is_ignored(root):
    for name in ("__MACOSX/Kvasir-SEG/images/cja.jpg", "images/._cja.jpg", "masks/._cja.jpg", "images/.DS_Store"):
        touch(root / name)
    index = SOURCE.index(str(root))
    assert (len(index.entries), index.present, index.skipped) == (4, 4, ())


@pytest.mark.parametrize("where", ["root", "above"])
def test_official_lists_are_the_split(root, where):
    folder = root if where == "root" else root.parent
    (folder / "train.txt").write_bytes(b"\xef\xbb\xbfcja\r\n\r\n  cjb.jpg \r\ncja\r\ncjabsent\r\n")
    (folder / "val.txt").write_text("cjc.JPG\n")
    index = read(root)
    assert {entry.id: entry.split for entry in index.entries} == {"cja": "train", "cjb": "train", "cjc": "test"}
    assert reasons(index) == {"images/cjd.jpg": "in neither list", "cjabsent": "listed without image"}


def test_lists_beside_the_images_win(root):
    for folder, first, second in ((root, "cja\ncjb\n", "cjc\ncjd\n"), (root.parent, "cjc\ncjd\n", "cja\ncjb\n")):
        (folder / "train.txt").write_text(first)
        (folder / "val.txt").write_text(second)
    assert [entry.split for entry in read(root).entries] == ["train", "train", "test", "test"]


def test_a_picture_in_both_lists_is_used_for_neither(root):
    (root / "train.txt").write_text("cja\ncjb\n")
    (root / "val.txt").write_text("cjb\ncjc\ncjd\n")
    index = read(root)
    assert ids(index) == ["cja", "cjc", "cjd"]
    assert reasons(index) == {"images/cjb.jpg": "in both lists"}


def test_lists_of_something_else_are_refused(root):
    (root.parent / "val.txt").write_text("cja\n")
    assert {entry.split for entry in read(root).entries} == {""}  # one alone in the folder above is not the dataset's
    (root / "val.txt").write_text("cja\n")
    assert "only one of train.txt and val.txt" in refused(root)
    (root / "train.txt").mkdir()
    assert "only one of train.txt and val.txt" in refused(root)
    (root / "train.txt").rmdir()
    (root / "train.txt").touch()
    (root / "val.txt").write_text("0001\n0002\n")
    with pytest.raises(ConfigError, match="name none of the pictures"):
        SOURCE.index(str(root))


def test_hostile_lists_are_counted(root):
    (root / "train.txt").write_bytes(b"cja\n../../secret\n/etc/passwd\ncj\xff\xfe\n\0\n" + b"x" * 100_000 + b"\n")
    (root / "val.txt").write_bytes(b'cjb\n"cjc"\ncj\nd\n')
    touch(root.parent.parent / "secret.jpg")
    index = read(root)
    assert ids(index) == ["cja", "cjb"]
    listed = [skip for skip in index.skipped if not skip.picture]
    assert {skip.reason for skip in listed} == {"listed without image"}
    names = {skip.path for skip in listed}
    assert names == {"../../secret", "/etc/passwd", "cj\ufffd\ufffd", "\0", "x" * 200, '"cjc"', "cj", "d"}


def test_links_never_lead_out_of_the_root(root):
    secret = touch(root.parent / "secret.jpg")
    touch(root.parent / "folder" / "cjz.jpg")
    (root / "images" / "cjout.jpg").symlink_to(secret)
    (root / "masks" / "cja.jpg").unlink()
    (root / "masks" / "cja.jpg").symlink_to("../../secret.jpg")
    (root / "images" / "cjloop.jpg").symlink_to("cjloop.jpg")
    (root / "images" / "cjnowhere.jpg").symlink_to("absent.jpg")
    (root / "images" / "circle").symlink_to(root)
    (root / "images" / "away").symlink_to(root.parent / "folder")
    index = read(root)
    assert ids(index) == ["cjb", "cjc", "cjd"]
    assert reasons(index) == {
        "images/cja.jpg": "no mask",
        "images/cjloop.jpg": "not a file",
        "images/cjnowhere.jpg": "not a file",
        "images/cjout.jpg": "outside the root",
        "masks/cja.jpg": "outside the root",
    }


def test_a_folder_that_links_out_is_refused(root):
    (root / "masks").rename(root.parent / "masks")
    (root / "masks").symlink_to(root.parent / "masks")
    assert "links out of" in refused(root)
    (root / "masks").unlink()
    (root / "masks").symlink_to("masks")
    assert "has no masks folder" in refused(root)
    (root / "masks").unlink()
    (root.parent / "masks").rename(root / "elsewhere")
    (root / "masks").symlink_to("elsewhere")
    assert SOURCE.index(str(root)).present == len(SOURCE.index(str(root)).entries) == 4


def test_a_list_that_links_out_is_refused(root):
    (root.parent / "mine.txt").write_text("cja\n")
    (root / "train.txt").symlink_to("../mine.txt")
    (root / "val.txt").write_text("cjb\n")
    assert "links out of" in refused(root)


def test_what_is_no_file_is_skipped(root):
    (root / "images" / "cjdir.jpg").mkdir()
    os.mkfifo(root / "images" / "cjpipe.jpg")  # opening it would wait for ever
    os.mkfifo(root / "masks" / "cja.jpg.png")
    bad = os.fsencode(root / "images") + b"/cj\xff.jpg"
    Path(os.fsdecode(bad)).touch()
    touch(Path(os.fsdecode(bad.replace(b"images", b"masks"))))
    index = read(root)
    assert ids(index) == ["cja", "cjb", "cjc", "cjd"]
    assert reasons(index) == {
        "images/cjpipe.jpg": "not a file",
        "masks/cja.jpg.png": "not a file",
        "images/cj\ufffd.jpg": "name is not UTF-8",
        "masks/cj\ufffd.jpg": "name is not UTF-8",
    }


def test_a_wrong_folder_is_refused_with_a_remedy(root, tmp_path):
    assert "is empty" in refused("")
    assert "no folder" in refused(tmp_path / "absent")
    assert "no folder" in refused("nul\0byte")
    assert "no folder" in refused(root / "kavsir_bboxes.json")
    assert f"did you mean '{root}'?" in refused(root.parent)
    (tmp_path / "bare" / "images").mkdir(parents=True)
    assert "has no masks folder" in refused(tmp_path / "bare")
    (tmp_path / "bare" / "masks").mkdir()
    assert "holds no picture" in refused(tmp_path / "bare")


def test_a_folder_of_which_nothing_is_usable_is_refused(root):
    for mask in list((root / "masks").iterdir()):
        mask.rename(mask.with_name("other-" + mask.name))
    with pytest.raises(ConfigError, match=r"no usable picture \(8 skipped, the first: images/cja.jpg: no mask\)"):
        SOURCE.index(str(root))
