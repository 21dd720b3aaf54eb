"""BUSI as a source. The files hold no pictures: a source that decoded one would fail here."""

import functools
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.source_checks import reasons, refused_by
from vgjax.config import ConfigError
from vgjax.data.entries import SUFFIXES, Index, find
from vgjax.data.sources import busi
from vgjax.data.sources.busi import SOURCE


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def root(tmp_path) -> Path:
    root = tmp_path / "above" / "Dataset_BUSI_with_GT"
    for label in busi.CLASSES:
        for number in (1, 2):
            touch(root / label / f"{label} ({number}).png")
            touch(root / label / f"{label} ({number})_mask.png")
    return root


def read(root: Path) -> Index:
    """An index whose promises are kept, and kept twice."""
    index = SOURCE.index(str(root))
    assert index == SOURCE.index(str(root))
    pictures = [p for p in find(root, SUFFIXES) if "_mask" not in p.name.lower()]
    assert index.present == len(pictures) == len(index.entries) + sum(skip.picture for skip in index.skipped)
    assert [entry.id for entry in index.entries] == sorted(entry.id for entry in index.entries)
    return index


def ids(index: Index) -> set[str]:
    return {entry.id for entry in index.entries}


ALL = {f"{label} ({number})" for label in busi.CLASSES for number in (1, 2)}


def masks_of(index: Index, name: str) -> list[str]:
    return [mask.name for entry in index.entries if entry.id == name for mask in entry.masks]


refused = functools.partial(refused_by, SOURCE)


def test_every_picture_of_the_real_copy_is_used(data_root):
    root = data_root / "busi" / "Dataset_BUSI_with_GT"
    SOURCE.check(str(root))
    index = SOURCE.index(str(root))
    assert (len(index.entries), index.present, index.skipped) == (624, 624, ())
    assert Counter(e.label for e in index.entries) == {"benign": 350, "malignant": 167, "normal": 107}
    masks = [mask for entry in index.entries for mask in entry.masks]
    assert len(masks) == len(set(masks)) == 639
    assert masks_of(index, "benign (100)") == ["benign (100)_mask.png", "benign (100)_mask_1.png"]
    assert {(e.text, e.group, e.split) for e in index.entries} == {("", "", "")}
    with pytest.raises(ConfigError, match=r"did you mean '.*Dataset_BUSI_with_GT'"):
        SOURCE.check(str(root.parent))


def test_names_with_spaces_and_parentheses_pair_up(root):
    index = read(root)
    assert ids(index) == ALL and index.skipped == ()
    for entry in index.entries:
        assert entry.image == root / entry.label / f"{entry.id}.png"
        assert entry.masks == (root / entry.label / f"{entry.id}_mask.png",)
        assert entry.id.split()[0] == entry.label


def test_several_masks_are_all_listed(root):
    for number in (1, 2, 10):
        touch(root / "malignant" / f"malignant (2)_mask_{number}.png")
    touch(root / "malignant" / "malignant (2)_Mask_3.PNG")
    index = read(root)
    assert sorted(masks_of(index, "malignant (2)")) == [
        "malignant (2)_Mask_3.PNG",
        "malignant (2)_mask.png",
        "malignant (2)_mask_1.png",
        "malignant (2)_mask_10.png",
        "malignant (2)_mask_2.png",
    ]
    assert masks_of(index, "malignant (1)") == ["malignant (1)_mask.png"]


def test_only_a_normal_picture_may_lack_a_mask(root):
    for label in busi.CLASSES:
        (root / label / f"{label} (1)_mask.png").unlink()
    index = read(root)
    assert ids(index) == ALL - {"benign (1)", "malignant (1)"}
    assert masks_of(index, "normal (1)") == [] and masks_of(index, "normal (2)") == ["normal (2)_mask.png"]
    assert reasons(index) == {"benign/benign (1).png": "no mask", "malignant/malignant (1).png": "no mask"}


def test_a_mask_without_image_is_no_picture(root):
    (root / "benign" / "benign (1).png").unlink()
    touch(root / "benign" / "benign (1)_mask_1.png")
    touch(root / "normal" / "benign (2)_mask_1.png")  # beside no image of its name
    index = read(root)
    assert ids(index) == ALL - {"benign (1)"}
    assert masks_of(index, "benign (2)") == ["benign (2)_mask.png"]
    names = ("benign/benign (1)_mask.png", "benign/benign (1)_mask_1.png", "normal/benign (2)_mask_1.png")
    assert reasons(index) == dict.fromkeys(names, "mask without image")
    assert not any(skip.picture for skip in index.skipped)


def test_doubles_and_strays_are_skipped(root):
    touch(root / "benign" / "benign (1).jpg")
    touch(root / "malignant" / "benign (2).png")
    touch(root / "malignant" / "benign (2)_mask.png")
    touch(root / "cover.png")
    touch(root / "other" / "other (1)_mask.png")
    touch(root / "benign" / "notes.txt")
    index = read(root)
    assert ids(index) == ALL
    assert next(e for e in index.entries if e.id == "benign (2)").label == "benign"
    assert reasons(index) == {
        "benign/benign (1).png": "same id twice",
        "malignant/benign (2).png": "same id twice",
        "cover.png": "not in a class folder",
        "other/other (1)_mask.png": "not in a class folder",
    }


def test_what_macos_adds_is_ignored(root):
    for name in ("__MACOSX/benign/benign (1).png", "benign/._benign (1).png", "benign/.DS_Store"):
        touch(root / name)
    touch(root / "benign" / "__MACOSX" / "._benign (2)_mask.png")
    index = SOURCE.index(str(root))
    assert (len(index.entries), index.present, index.skipped) == (6, 6, ())


def test_a_copy_may_lack_a_class(root):
    for path in list((root / "normal").iterdir()):
        path.unlink()
    (root / "normal").rmdir()
    assert {entry.label for entry in read(root).entries} == {"benign", "malignant"}


def test_a_class_folder_that_links_to_itself_is_lacking(root):
    shutil.rmtree(root / "normal")
    (root / "normal").symlink_to("normal")
    assert ids(read(root)) == {name for name in ALL if not name.startswith("normal")}


def test_links_never_lead_out_of_the_root(root):
    secret = touch(root.parent / "secret.png")
    touch(root.parent / "folder" / "benign (9).png")
    (root / "normal" / "normal (3).png").symlink_to(secret)
    (root / "normal" / "normal (4).png").symlink_to("normal (4).png")
    (root / "normal" / "normal (5).png").symlink_to("absent.png")
    (root / "normal" / "circle").symlink_to(root)
    (root / "benign" / "away").symlink_to(root.parent / "folder")
    index = read(root)
    assert ids(index) == ALL
    assert reasons(index) == {
        "normal/normal (3).png": "outside the root",
        "normal/normal (4).png": "not a file",
        "normal/normal (5).png": "not a file",
    }


def test_half_a_mask_is_no_mask(root):
    secret = touch(root.parent / "secret.png")
    (root / "benign" / "benign (1)_mask_1.png").symlink_to(secret)
    (root / "benign" / "benign (9)_mask.png").symlink_to(secret)  # of no image
    os.mkfifo(root / "malignant" / "malignant (1)_mask_1.png")  # opening it would wait for ever
    (root / "normal" / "normal (1)_mask.png").unlink()
    (root / "normal" / "normal (1)_mask.png").symlink_to("absent.png")
    index = read(root)
    assert ids(index) == {"benign (2)", "malignant (2)", "normal (2)"}
    assert reasons(index) == {
        "benign/benign (1).png": "unusable mask",
        "benign/benign (1)_mask_1.png": "outside the root",
        "benign/benign (9)_mask.png": "outside the root",
        "malignant/malignant (1).png": "unusable mask",
        "malignant/malignant (1)_mask_1.png": "not a file",
        "normal/normal (1).png": "unusable mask",
        "normal/normal (1)_mask.png": "not a file",
    }


def test_a_class_folder_that_links_out_is_refused(root):
    (root / "normal").rename(root.parent / "normal")
    (root / "normal").symlink_to(root.parent / "normal")
    assert "links out of" in refused(root)
    (root / "normal").unlink()
    (root.parent / "normal").rename(root / "elsewhere")
    (root / "normal").symlink_to("elsewhere")
    index = SOURCE.index(str(root))
    assert ids(index) == ALL and {entry.label for entry in index.entries} == set(busi.CLASSES)


def test_odd_names_are_no_trouble(root):
    (root / "benign" / "benign (3).png").mkdir()
    touch(root / "benign" / "benign\n(4).png")
    touch(root / "benign" / "benign\n(4)_mask.png")
    touch(root / "benign" / "_mask.png")
    touch(root / "benign" / ".png")  # hidden, without suffix
    touch(root / "benign" / f"{'b' * 240}.png")
    touch(Path(os.fsdecode(os.fsencode(root / "normal") + b"/normal \xff.png")))
    index = read(root)
    assert ids(index) == ALL | {"benign\n(4)"}
    assert reasons(index) == {
        f"benign/{'b' * 240}.png": "no mask",
        "benign/_mask.png": "mask without image",
        "normal/normal \ufffd.png": "name is not UTF-8",
    }


def test_a_wrong_folder_is_refused_with_a_remedy(root, tmp_path):
    assert "is empty" in refused("")
    assert "no folder" in refused(tmp_path / "absent")
    assert "no folder" in refused("nul\0byte")
    assert "no folder" in refused(root / "benign" / "benign (1).png")
    assert f"did you mean '{root}'?" in refused(root.parent)
    assert "name the folder Dataset_BUSI_with_GT" in refused(root / "benign")
    (tmp_path / "bare" / "benign").mkdir(parents=True)
    assert "hold no picture" in refused(tmp_path / "bare")
    (tmp_path / "ring").mkdir()
    (tmp_path / "ring" / "benign").symlink_to("benign")
    assert "has none of the folders" in refused(tmp_path / "ring")


def test_a_folder_of_which_nothing_is_usable_is_refused(tmp_path):
    touch(tmp_path / "benign" / "benign (1).png")
    with pytest.raises(
        ConfigError, match=r"no usable picture \(1 skipped, the first: benign/benign \(1\).png: no mask"
    ):
        SOURCE.index(str(tmp_path))
