import collections
import os
import pickle
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests import mimic_tree
from vgjax.config import ConfigError
from vgjax.data.entries import Index, RunLengths
from vgjax.data.sources import mimic
from vgjax.data.sources.mimic import SOURCE, PackedRunLengths

MASKS = "chexmask/OriginalResolution/MIMIC-CXR-JPG.csv"


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return mimic_tree.make(tmp_path_factory.mktemp("mimic") / "tree", patients=12)


@pytest.fixture
def copy(tree, tmp_path) -> Path:
    """A tree to spoil."""
    return shutil.copytree(tree, tmp_path / "copy")


def change(root: Path, table: str, only: str = "", **values: str) -> None:
    """Sets columns of a table, of the row of one image alone if it is named."""
    path = root / (table if "/" in table else f"mimic-cxr-2.0.0-{table}.csv")
    rows = mimic_tree.read(path)
    for row in rows:
        if only in ("", row.get("dicom_id")):
            row.update(values)
    mimic_tree.write(path, rows)


def reasons(index: Index) -> collections.Counter[str]:
    return collections.Counter(skip.reason for skip in index.skipped)


def why(index: Index, name: str) -> tuple[str, bool]:
    (found,) = (skip for skip in index.skipped if Path(skip.path).stem == name)
    return found.reason, found.picture


def test_every_image_is_accounted_for(tree):
    index = SOURCE.index(str(tree))
    assert index.present == 24 == len(list(tree.rglob("*.jpg")))
    assert reasons(index) == {"not a frontal view": 6, "no lung mask of quality": 2}
    assert {entry.split for entry in index.entries} == {"train", "validation", "test"}
    assert [entry.id for entry in index.entries] == sorted(entry.image.stem for entry in index.entries)


def test_entries_say_what_the_tables_say(tree):
    splits = {row["dicom_id"]: row for row in mimic_tree.read(tree / "mimic-cxr-2.0.0-split.csv")}
    labels = {row["study_id"]: row for row in mimic_tree.read(tree / "mimic-cxr-2.0.0-chexpert.csv")}
    for entry in SOURCE.index(str(tree)).entries:
        row = splits[entry.id]
        assert entry.group == row["subject_id"]
        assert entry.split == {"train": "train", "validate": "validation", "test": "test"}[row["split"]]
        assert labels[row["study_id"]][entry.label] == "1.0"
        finding = {"No Finding": "lungs are clear", "Cardiomegaly": "enlarged", "Lung Opacity": "opacity"}
        assert finding.get(entry.label, "effusion") in entry.text
        assert "year old" not in entry.text and "___" not in entry.text and "Dr." not in entry.text


def test_masks_are_both_lungs_and_not_the_heart(tree):
    rng = np.random.default_rng(1)
    pixels, regions = mimic_tree.draw(80, 64, "heart", "left", "large", rng)
    assert pixels.shape == (80, 64)
    row = {key: str(value) for key, value in mimic_tree.mask_row("a", 0.7, regions, 80, 64).items()}
    masks = mimic.lungs_of(row)
    painted = np.zeros((80, 64), bool)
    for mask in masks:
        assert (mask.height, mask.width) == (80, 64)
        numbers = [int(number) for number in mask.text.split()]
        for start, length in zip(numbers[::2], numbers[1::2], strict=True):
            painted.reshape(-1)[start - 1 : start - 1 + length] = True
    assert len(masks) == 2
    np.testing.assert_array_equal(painted, regions["Left Lung"] | regions["Right Lung"])
    assert not painted[regions["Heart"] & ~regions["Left Lung"] & ~regions["Right Lung"]].any()


def test_run_lengths_are_packed_without_loss():
    text = mimic_tree.run_lengths(
        mimic_tree.draw(1200, 1000, "", "left", "small", np.random.default_rng(0))[1]["Left Lung"]
    )
    packed = PackedRunLengths.pack(text, 1200, 1000)
    assert isinstance(packed, RunLengths) and packed.text == text
    assert pickle.loads(pickle.dumps(packed)).text == text
    assert len(packed[0]) < len(text) / 5
    with pytest.raises(ValueError):
        PackedRunLengths.pack("1 2 3", 10, 10)


@pytest.mark.parametrize(
    ("findings", "label"),
    [
        ({"Edema": "1.0", "Pneumonia": "1.0"}, "Edema"),
        ({"Edema": "-1.0", "Pneumonia": "1"}, "Pneumonia"),
        ({"Edema": "0.0"}, ""),
        ({"Edema": "-1.0"}, ""),
        ({}, ""),
        ({"No Finding": "1.0", "Support Devices": "1.0"}, "No Finding"),
        ({"Edema": "yes", "Fracture": "nan"}, ""),
    ],
)
def test_the_label_is_the_first_positive_finding(findings, label):
    assert mimic.label_of(dict.fromkeys(mimic.FINDINGS, "") | findings) == label


@pytest.mark.parametrize(
    ("change", "used"),
    [
        ({mimic.QUALITY: "0.7"}, True),
        ({mimic.QUALITY: "0.6999"}, False),
        ({mimic.QUALITY: ""}, False),
        ({mimic.QUALITY: "nan"}, False),
        ({"Left Lung": ""}, False),
        ({"Left Lung": "1 2 3"}, False),
        ({"Left Lung": "one two"}, False),
        ({"Left Lung": "99999999999999999999 1"}, False),
        ({"Height": "tall"}, False),
        ({"Height": "1e999"}, False),
        ({"Height": "4.0", "Heart": ""}, True),
    ],
)
def test_masks_of_quality(change, used):
    row = {
        mimic.QUALITY: "0.9",
        "Left Lung": "1 2 5 2",
        "Right Lung": "9 1",
        "Heart": "3 1",
        "Height": "4",
        "Width": "4",
    }
    masks = mimic.lungs_of(row | change)
    assert [(*mask[1:], mask.text) for mask in masks] == [(4, 4, "1 2 5 2"), (4, 4, "9 1")] * used


def test_compressed_tables_of_another_version_are_read(tree, tmp_path):
    root = mimic_tree.make(tmp_path / "packed", patients=12, packed=True)
    for path in root.glob("mimic-cxr-2.0.0-*"):
        path.rename(path.with_name(path.name.replace("2.0.0", "2.1.0")))
    packed, plain = SOURCE.index(str(root)), SOURCE.index(str(tree))
    assert [(e.id, e.masks, e.text, e.label) for e in packed.entries] == [
        (e.id, e.masks, e.text, e.label) for e in plain.entries
    ]


def test_masks_and_reports_in_other_places(copy):
    expected = SOURCE.index(str(copy)).entries
    (copy / MASKS).rename(copy / "MIMIC-CXR-JPG.csv")
    shutil.rmtree(copy / "chexmask")
    for path in list(copy.rglob("s*.txt")):
        moved = copy / "mimic-cxr-reports" / path.relative_to(copy)
        moved.parent.mkdir(parents=True, exist_ok=True)
        path.rename(moved)
    assert SOURCE.index(str(copy)).entries == expected


def test_preprocessed_masks_are_not_taken(copy):
    (copy / "chexmask" / "OriginalResolution").rename(copy / "chexmask" / "Preprocessed")
    with pytest.raises(ConfigError, match="holds no table of MIMIC-CXR masks"):
        SOURCE.index(str(copy))


def test_without_chexmask_reports_or_labels_entries_do_without(tmp_path):
    root = mimic_tree.make(tmp_path / "tree", patients=6, chexmask=False)
    (root / "mimic-cxr-2.0.0-chexpert.csv").unlink()
    for path in root.rglob("*.txt"):
        path.unlink()
    index = SOURCE.index(str(root))
    assert {(entry.masks, entry.text, entry.label) for entry in index.entries} == {((), "", "")}
    assert set(reasons(index)) == {"not a frontal view"}


def test_a_part_of_the_files_will_do(copy):
    shutil.rmtree(next(copy.glob("files/p10/*")))
    index = SOURCE.index(str(copy))
    assert index.present == 22 and reasons(index)["row without image"] == 1
    assert next(skip for skip in index.skipped if skip.reason == "row without image").detail == "2 rows"


@pytest.mark.parametrize(
    ("table", "values", "reason"),
    [
        ("metadata", {"ViewPosition": ""}, "not a frontal view"),
        ("metadata", {"ViewPosition": "LL"}, "not a frontal view"),
        ("metadata", {"dicom_id": "another"}, "image without row"),
        ("split", {"dicom_id": "another"}, "image without row"),
        ("split", {"split": "holdout"}, "unknown split"),
        ("split", {"split": ""}, "unknown split"),
        ("split", {"subject_id": "10000033"}, "folder and table disagree"),
        ("split", {"study_id": "../../etc"}, "folder and table disagree"),
        (MASKS, {"dicom_id": "another"}, "no lung mask of quality"),
        (MASKS, {"Left Lung": "5 x"}, "no lung mask of quality"),
    ],
)
def test_a_bad_row_costs_its_image(copy, table, values, reason):
    before = SOURCE.index(str(copy))
    name = before.entries[0].id
    change(copy, table, name, **values)
    after = SOURCE.index(str(copy))
    assert why(after, name) == (reason, True)
    assert [entry.id for entry in after.entries] == [entry.id for entry in before.entries[1:]]


def test_of_several_rows_the_first_counts(copy):
    path = copy / "mimic-cxr-2.0.0-split.csv"
    rows = mimic_tree.read(path)
    mimic_tree.write(path, rows + [{**row, "split": "test", "subject_id": "1"} for row in rows])
    assert len({entry.split for entry in SOURCE.index(str(copy)).entries}) == 3


def test_bad_files_cost_themselves(copy, tmp_path):
    before = SOURCE.index(str(copy))
    one, two, three, four, *_ = before.entries
    (tmp_path / "secret.txt").write_text("FINDINGS: secret")
    one.image.unlink()
    one.image.symlink_to(tmp_path / "secret.txt")
    report = two.image.parent.with_suffix(".txt")
    report.unlink()
    report.symlink_to(tmp_path / "secret.txt")
    report = three.image.parent.with_suffix(".txt")
    report.unlink()
    os.mkfifo(report)  # reading it would wait for ever
    shutil.copy(four.image, four.image.with_suffix(".png"))
    (copy / "files" / "stray.jpg").touch()
    (copy / "files" / "._x.jpg").touch()
    after = SOURCE.index(str(copy))
    assert why(after, one.id) == ("outside the root", True)
    assert why(after, two.id) == ("outside the root", True)
    assert why(after, three.id) == ("unreadable report", True)
    assert why(after, four.id) == ("same image twice", True)
    assert why(after, "stray") == ("image without row", True)
    assert after.present == before.present + 2 == len(after.entries) + sum(skip.picture for skip in after.skipped)


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        (b"FINDINGS: \xff\xfe clear.", "unreadable report"),
        (b"\x00\x00\x00", ""),
        (b"", ""),
        (b"FINDINGS: " + b"long " * 10_000, "caption too long"),
    ],
)
def test_odd_reports(copy, report, reason):
    entry = SOURCE.index(str(copy)).entries[0]
    entry.image.parent.with_suffix(".txt").write_bytes(report)
    index = SOURCE.index(str(copy))
    if reason:
        assert why(index, entry.id) == (reason, True)
    else:
        assert next(e.text for e in index.entries if e.id == entry.id) == ""


@pytest.mark.parametrize(("table", "column"), [("split", "split"), ("metadata", "ViewPosition"), ("chexpert", "Edema")])
def test_missing_columns_are_one_error(copy, table, column):
    path = copy / f"mimic-cxr-2.0.0-{table}.csv"
    mimic_tree.write(path, [{key: row[key] for key in row if key != column} for row in mimic_tree.read(path)])
    with pytest.raises(ConfigError, match=f"{table}.csv' has no column {column} "):
        SOURCE.index(str(copy))


def test_tables_of_other_datasets_are_no_masks(copy):
    rows = [{"Path": row.pop("dicom_id"), **row} for row in mimic_tree.read(copy / MASKS)]
    mimic_tree.write(copy / "chexmask" / "CheXpert.csv", rows)
    mimic_tree.write(copy / "chexmask" / "Heights.csv", [{"dicom_id": row["Path"], "Height": "9"} for row in rows])
    assert len(SOURCE.index(str(copy)).entries) == 16
    (copy / MASKS).unlink()
    with pytest.raises(ConfigError, match=r"has no column Dice RCA \(Mean\), Left Lung"):
        SOURCE.index(str(copy))


def test_a_truncated_table_is_one_error(tmp_path):
    root = mimic_tree.make(tmp_path / "tree", patients=6, packed=True)
    path = root / "mimic-cxr-2.0.0-split.csv.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ConfigError, match="cannot be read to its end"):
        SOURCE.index(str(root))
    path.write_bytes(b"no gzip")
    with pytest.raises(ConfigError, match="cannot be read to its end"):
        SOURCE.index(str(root))


def test_tables_and_folders_that_link_out_are_refused(copy, tmp_path):
    path = copy / "mimic-cxr-2.0.0-split.csv"
    path.rename(tmp_path / "table.csv")
    path.symlink_to(tmp_path / "table.csv")
    with pytest.raises(ConfigError, match="is no file inside"):
        SOURCE.index(str(copy))
    (copy / "files").rename(tmp_path / "files")
    (copy / "files").symlink_to(tmp_path / "files")
    with pytest.raises(ConfigError, match="links out of"):
        SOURCE.check(str(copy))


def test_wrong_layouts_are_refused(copy, tmp_path):
    SOURCE.check(str(copy))
    with pytest.raises(ConfigError, match="is empty"):
        SOURCE.check("")
    with pytest.raises(ConfigError, match="no folder"):
        SOURCE.check(str(tmp_path / "absent"))
    (copy / "mimic-cxr-2.0.0-metadata.csv").unlink()
    with pytest.raises(ConfigError, match=r"no mimic-cxr-\*-metadata\.csv: name the folder"):
        SOURCE.check(str(copy))
    with pytest.raises(ConfigError, match="no folder files/ and no mimic"):
        SOURCE.check(str(tmp_path))


def test_rows_of_absent_images_are_not_kept(tree, tmp_path):
    """The table of masks is far larger than what is kept of it."""
    root = shutil.copytree(tree, tmp_path / "copy")
    rows = mimic_tree.read(root / MASKS)
    # A mask of 60 kB in each of 400 rows whose images are absent.
    run = " ".join(f"{start} 3" for start in range(1, 60_000, 8))
    others = [{**rows[0], "dicom_id": f"absent-{number}", "Left Lung": run} for number in range(400)]
    mimic_tree.write(root / MASKS, rows + others)
    tracemalloc.start()
    index = SOURCE.index(str(root))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(index.entries) == 16
    assert (root / MASKS).stat().st_size > 20e6 and peak < 5e6
