import collections
import os
from pathlib import Path

import pytest

from vgjax.config import ConfigError
from vgjax.data.sources.covid_cxr import SOURCE

COLUMNS = ("patientid", "finding", "view", "modality", "folder", "filename", "clinical_notes")
LINE = {"patientid": "1", "finding": "COVID-19", "view": "PA", "modality": "X-ray", "folder": "images"}
DRAWN = "semantic_masks_v7labs_lungs"


def make(
    root: Path, *rows: dict[str, str], names: tuple[str, ...] = ("a.jpg", "b.png"), encoding: str = "utf-8"
) -> Path:
    """Files with masks (no pixels: they are never decoded) and rows; without any, one row for each file."""
    (root / "images").mkdir(parents=True)
    (root / DRAWN).mkdir()
    for name in names:
        (root / "images" / name).write_bytes(b"image")
        (root / DRAWN / name).write_bytes(b"mask")
    lines = [{**LINE, **row} for row in rows] or [{**LINE, "filename": name} for name in names]
    quoted = [",".join('"' + line.get(column, "").replace('"', '""') + '"' for column in COLUMNS) for line in lines]
    (root / "metadata.csv").write_text("\n".join([",".join(COLUMNS), *quoted]), encoding)
    return root


def refused(root: Path) -> dict[str, tuple[str, bool]]:
    return {skip.path: (skip.reason, skip.picture) for skip in SOURCE.index(str(root)).skipped}


def test_real_data_is_accounted_for(data_root):
    root = data_root / "covid-chestxray-dataset"
    index = SOURCE.index(str(root))
    reasons = collections.Counter((skip.reason, skip.picture) for skip in index.skipped)
    assert reasons == {
        ("not a radiograph", True): 38,
        ("not a frontal view", True): 60,
        ("no lung mask", True): 59,
        ("row without image", False): 16,
        ("further row of an image", False): 3,
    }
    assert index.present == 349 == len(os.listdir(root / "images"))
    assert len(index.entries) == 192
    assert collections.Counter(entry.label for entry in index.entries).most_common(2) == [
        ("COVID-19", 163),
        ("Streptococcus", 10),
    ]
    assert all(path.is_file() for entry in index.entries for path in (entry.image, *entry.masks))
    assert not any("\ufffd" in entry.text or entry.text == "todo" for entry in index.entries)
    assert sum(bool(entry.text) for entry in index.entries) == 118
    # Two patient ids of one person, who has three pictures in common.
    assert [entry.group for entry in index.entries if entry.group in ("285", "339")].count("339") == 0


def test_an_entry_has_notes_label_patient_and_mask(tmp_path):
    notes = 'Fever,\n "dry" cough\ufffdfor a week.'
    root = make(
        tmp_path / "d", {"filename": "a.jpg", "finding": "COVID-19, ARDS", "clinical_notes": notes, "patientid": "7"}
    )
    entry, *_ = SOURCE.index(str(root)).entries
    assert entry.text == 'Fever, "dry" cough for a week.'
    assert (entry.id, entry.label, entry.group, entry.split) == ("a.jpg", "COVID-19", "7", "")
    assert entry.masks == (root / DRAWN / "a.jpg",)


def test_the_drawn_mask_goes_before_the_predicted_one(tmp_path):
    root = make(tmp_path / "d")
    predicted = root / "annotations" / "lungVAE-masks"
    predicted.mkdir(parents=True)
    (root / DRAWN / "b.png").unlink()
    for name in ("a_mask.png", "b_mask.png"):
        (predicted / name).touch()
    assert [entry.masks for entry in SOURCE.index(str(root)).entries] == [
        (root / DRAWN / "a.jpg",),
        (predicted / "b_mask.png",),
    ]


@pytest.mark.parametrize("view", ["PA", "AP", "AP Supine", "AP Erect", "ap supine ", "APS"])
def test_frontal_views_are_used(tmp_path, view):
    root = make(tmp_path / "d", {"filename": "a.jpg", "view": view})
    assert [entry.id for entry in SOURCE.index(str(root)).entries] == ["a.jpg"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"view": "L"}, "not a frontal view"),
        ({"view": ""}, "not a frontal view"),
        ({"view": "?"}, "not a frontal view"),
        ({"view": "PALM"}, "not a frontal view"),
        ({"modality": "CT", "view": "Axial"}, "not a radiograph"),
        ({"modality": ""}, "not a radiograph"),
        ({"clinical_notes": "x" * 100_000}, "caption too long"),
    ],
)
def test_other_pictures_are_skipped(tmp_path, row, reason):
    root = make(tmp_path / "d", {"filename": "a.jpg"}, {"filename": "b.png", **row})
    assert refused(root) == {"b.png": (reason, True)} or refused(root) == {"images/b.png": (reason, True)}
    assert SOURCE.index(str(root)).present == 2


@pytest.mark.parametrize("notes", ["", "todo", " TODO ", "\ufffd", " \n "])
def test_no_notes_are_no_text(tmp_path, notes):
    root = make(tmp_path / "d", {"filename": "a.jpg", "clinical_notes": notes, "finding": "todo"})
    entry, *_ = SOURCE.index(str(root)).entries
    assert (entry.text, entry.label) == ("", "")


def test_rows_of_one_image_are_joined_and_their_patients_are_one_group(tmp_path):
    root = make(
        tmp_path / "d",
        {"filename": "a.jpg", "patientid": "5", "clinical_notes": "One.", "finding": "todo"},
        {"filename": "a.jpg", "patientid": "4", "clinical_notes": "Two."},
        {"filename": "a.jpg", "patientid": "4", "clinical_notes": "One."},
        {"filename": "b.png", "patientid": "5"},
        {"filename": "b.png", "patientid": "3"},
        {"filename": "c.png", "patientid": "3"},
        {"filename": "e.png", "patientid": "9"},
        names=("a.jpg", "b.png", "c.png", "e.png"),
    )
    index = SOURCE.index(str(root))
    assert [entry.group for entry in index.entries] == ["3", "3", "3", "9"]
    assert (index.entries[0].text, index.entries[0].label) == ("One. Two.", "COVID-19")
    assert [skip.reason for skip in index.skipped] == ["further row of an image"] * 3
    assert index.present == 4


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"filename": "absent.jpg"}, "row without image"),
        ({"filename": "scan.nii.gz", "folder": "volumes"}, "row without image"),
        ({"filename": "b.png", "folder": "volumes"}, "row without image"),
        ({"filename": ""}, "row without image"),
        ({"filename": "b.png\0.jpg"}, "row without image"),
        ({"filename": "x" * 5000}, "row without image"),
        ({"filename": f"../{DRAWN}/b.png"}, "row without image"),
        ({"filename": "../../outside.png"}, "outside the root"),
        ({"filename": "/etc/hostname"}, "outside the root"),
    ],
)
def test_rows_that_lead_nowhere_or_out(tmp_path, row, reason):
    (tmp_path / "outside.png").touch()
    root = make(tmp_path / "d", {"filename": "a.jpg"}, row)
    index = SOURCE.index(str(root))
    assert [entry.id for entry in index.entries] == ["a.jpg"]
    assert sorted((skip.reason, skip.picture) for skip in index.skipped) == [
        ("image without row", True),
        (reason, False),
    ]


def test_links_out_of_the_root_are_not_followed(tmp_path):
    root = make(tmp_path / "d", names=("a.jpg", "b.png", "c.png", "e.png"))
    (tmp_path / "secret").write_bytes(b"x")
    (root / "images" / "b.png").unlink()
    (root / "images" / "b.png").symlink_to(tmp_path / "secret")
    (root / DRAWN / "c.png").unlink()
    (root / DRAWN / "c.png").symlink_to(tmp_path / "secret")
    (root / "images" / "e.png").unlink()
    (root / "images" / "e.png").symlink_to("e.png")  # a circle
    assert refused(root) == {
        "images/b.png": ("outside the root", True),
        "images/c.png": ("outside the root", True),
        "images/e.png": ("not a file", True),
    }


def test_a_linked_folder_of_masks_does_not_lead_out(tmp_path):
    root = make(tmp_path / "d")
    (root / DRAWN).rename(tmp_path / "elsewhere")
    (root / DRAWN).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"2 skipped, the first: images/a.jpg: outside the root"):
        SOURCE.index(str(root))


def test_odd_names_and_folders_are_accounted_for(tmp_path):
    root = make(tmp_path / "d")
    (root / "images" / "folder.jpg").mkdir()
    (root / "images" / "pipe.png").touch()
    (root / "images" / "pipe.png").unlink()
    os.mkfifo(root / "images" / "pipe.png")
    with open(os.fsencode(root / "images") + b"/\xff.png", "wb"):
        pass
    assert refused(root) == {"images/pipe.png": ("not a file", True), "images/\ufffd.png": ("name is not UTF-8", True)}


def test_encodings_of_the_table(tmp_path):
    for encoding in ("utf-8-sig", "latin-1"):
        make(tmp_path / encoding, {"filename": "a.jpg", "clinical_notes": "Caf\xe9 visit."}, encoding=encoding)
    assert SOURCE.index(str(tmp_path / "utf-8-sig")).entries[0].text == "Caf\xe9 visit."
    with pytest.raises(ConfigError, match=r"metadata\.csv' is not UTF-8"):
        SOURCE.index(str(tmp_path / "latin-1"))


def test_short_rows_and_a_quote_left_open_cost_no_more_than_what_they_hold(tmp_path):
    root = make(tmp_path / "d", names=("a.jpg", "b.png", "c.png"))
    (root / "metadata.csv").write_text(
        "filename,patientid,finding,view,modality,clinical_notes,folder\r\na.jpg,1,x,PA,X-ray\r\n\r\n"
        'b.png,1,x,PA,X-ray,"left open\r\nc.png,1,x,PA,X-ray,fine\r\n'
    )
    index = SOURCE.index(str(root))
    assert [entry.id for entry in index.entries] == ["a.jpg", "b.png"]
    assert [skip[:2] for skip in index.skipped] == [("images/c.png", "image without row")]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", r"no column patientid, finding, view, modality, filename, clinical_notes \(it has none\)"),
        ("filename,finding\na.jpg,x\n", "no column patientid, view, modality, clinical_notes"),
        ("\ufeff".encode("utf-16").decode("latin-1"), "no column"),
    ],
)
def test_missing_columns_are_one_error(tmp_path, text, complaint):
    root = make(tmp_path / "d")
    (root / "metadata.csv").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        SOURCE.index(str(root))


def test_wrong_layouts_are_refused_by_name_alone(tmp_path):
    root = make(tmp_path / "archive" / "d")
    with pytest.raises(ConfigError, match="is empty"):
        SOURCE.check("")
    with pytest.raises(ConfigError, match="no folder"):
        SOURCE.check(str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=f"did you mean '{root}'"):
        SOURCE.check(str(root.parent))
    (root / "metadata.csv").rename(root / "table.csv")
    with pytest.raises(ConfigError, match=r"no metadata\.csv: name the folder"):
        SOURCE.check(str(root))
    (root / "metadata.csv").symlink_to(make(tmp_path / "other") / "metadata.csv")
    with pytest.raises(ConfigError, match="is no file inside"):
        SOURCE.index(str(root))
    for path in (root / "images").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match="holds no picture"):
        SOURCE.check(str(root))
    (root / "images").rmdir()
    (root / "images").symlink_to(tmp_path / "other" / "images")
    with pytest.raises(ConfigError, match="links out of"):
        SOURCE.check(str(root))
