"""HAM10000 as a source. The files hold no pictures: a source that decoded one would fail here."""

import functools
import os
from collections import Counter
from pathlib import Path

import pytest

from tests.source_checks import reasons, refused_by
from vgjax.config import ConfigError
from vgjax.data.entries import SUFFIXES, Index, find
from vgjax.data.sources.ham10000 import SOURCE

HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization"
ROWS = (
    "HAM_1,ISIC_1,nv,histo,45.0,male,back",
    "HAM_1,ISIC_2,nv,histo,45.0,male,back",
    "HAM_3,ISIC_3,mel,follow_up,,female,face",
    "HAM_4,ISIC_4,vasc,consensus,5.0,unknown,unknown",
)
IDS = ["ISIC_1", "ISIC_2", "ISIC_3", "ISIC_4"]
ONE, TWO, MASKS = "HAM10000_images_part_1", "HAM10000_images_part_2", "HAM10000_segmentations_lesion_tschandl"


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def write_table(root: Path, *rows: str, header: str = HEADER) -> None:
    (root / "HAM10000_metadata.csv").write_text("\n".join((header, *rows)) + "\n")


@pytest.fixture
def root(tmp_path) -> Path:
    root = tmp_path / "above" / "ham"
    for number, name in enumerate(IDS):
        touch(root / (ONE, TWO)[number // 2] / f"{name}.jpg")
        touch(root / MASKS / f"{name}_segmentation.png")
    write_table(root, *ROWS)
    return root


def read(root: Path) -> Index:
    """An index whose promises are kept, and kept twice."""
    index = SOURCE.index(str(root))
    assert index == SOURCE.index(str(root))
    pictures = [p for p in find(root, SUFFIXES) if "_segmentation" not in p.name.lower()]
    assert index.present == len(pictures) == len(index.entries) + sum(skip.picture for skip in index.skipped)
    return index


def ids(index: Index) -> list[str]:
    return [entry.id for entry in index.entries]


refused = functools.partial(refused_by, SOURCE)


def test_every_picture_of_the_real_copy_is_used(data_root):
    root = data_root / "ham10000"
    SOURCE.check(str(root))
    index = SOURCE.index(str(root))
    assert (len(index.entries), index.present, index.skipped) == (799, 799, ())
    counts = {"akiec": 80, "bcc": 104, "bkl": 128, "nv": 240, "vasc": 56, "mel": 144, "df": 47}
    assert Counter(entry.label for entry in index.entries) == counts
    first = index.entries[0]
    assert (first.id, first.label, first.group) == ("ISIC_0024329", "akiec", "HAM_0002954")
    assert first.masks == ((root / MASKS / "ISIC_0024329_segmentation.png").resolve(),)
    assert all(entry.group.startswith("HAM_") for entry in index.entries)
    assert {(entry.text, entry.split, len(entry.masks)) for entry in index.entries} == {("", "", 1)}


def test_images_of_one_lesion_are_a_group(root):
    index = read(root)
    assert [(e.id, e.label, e.group) for e in index.entries] == [
        ("ISIC_1", "nv", "HAM_1"),
        ("ISIC_2", "nv", "HAM_1"),
        ("ISIC_3", "mel", "HAM_3"),
        ("ISIC_4", "vasc", "HAM_4"),
    ]
    assert index.entries[2].image == root / TWO / "ISIC_3.jpg"
    assert index.entries[2].masks == (root / MASKS / "ISIC_3_segmentation.png",)
    assert index.skipped == ()


def test_how_a_finding_was_made_reaches_nothing(root):
    write_table(root, *(row + ",vidir_modern" for row in ROWS), header=HEADER + ",dataset")
    named = repr(read(root).entries)
    assert "nv" in named and not any(
        word in named for word in ("histo", "follow_up", "consensus", "vidir", "male", "back", "45")
    )


@pytest.mark.parametrize(
    "name", ["HAM10000_metadata", "ham10000_METADATA.CSV", "HAM10000_metadata.tab", "x/ham10000_metadata.tsv"]
)
@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_the_table_may_be_named_and_separated_in_many_ways(root, name, separator):
    (root / "HAM10000_metadata.csv").unlink()
    touch(root / name).write_text("\n".join((HEADER, *ROWS)).replace(",", separator))
    index = read(root)
    assert ids(index) == IDS and index.skipped == ()
    assert index.entries[3].group == "HAM_4"


def test_a_second_table_is_named_and_not_read(root):
    touch(root / "archive" / "HAM10000_metadata.tab").write_text("nonsense")
    assert reasons(read(root)) == {"archive/HAM10000_metadata.tab": "another table"}


def test_files_may_lie_anywhere(root):
    (root / ONE).rename(root / "moved")
    (root / ONE).mkdir()
    (root / "moved").rename(root / ONE / ONE)
    (root / TWO / "ISIC_3.jpg").rename(root / "ISIC_3.JPG")
    (root / MASKS).rename(root / "moved")
    (root / "masks" / "deep").mkdir(parents=True)
    (root / "moved").rename(root / "masks" / "deep" / MASKS)
    index = read(root)
    assert ids(index) == IDS and index.skipped == ()
    assert index.entries[0].image == root / ONE / ONE / "ISIC_1.jpg"


def test_the_same_image_in_two_folders_is_used_once(root):
    touch(root / TWO / "ISIC_1.jpg")
    touch(root / MASKS / "again" / "ISIC_2_segmentation.png")
    index = read(root)
    assert ids(index) == IDS
    assert index.entries[0].image == root / ONE / "ISIC_1.jpg"
    assert reasons(index) == {
        f"{TWO}/ISIC_1.jpg": "same image twice",
        f"{MASKS}/again/ISIC_2_segmentation.png": "same mask twice",
    }


def test_what_has_no_partner_is_skipped(root):
    (root / ONE / "ISIC_1.jpg").unlink()
    (root / MASKS / "ISIC_2_segmentation.png").unlink()
    write_table(root, *ROWS[:2], ROWS[3])
    index = read(root)
    assert ids(index) == ["ISIC_4"]
    assert [(skip.path, skip.reason, skip.picture) for skip in index.skipped] == [
        (f"{ONE}/ISIC_2.jpg", "no mask", True),
        (f"{TWO}/ISIC_3.jpg", "image without row", True),
        ("ISIC_1", "row without image", False),
        (f"{MASKS}/ISIC_1_segmentation.png", "mask without image", False),
    ]


def test_what_macos_adds_is_ignored(root):
    for name in (f"__MACOSX/{ONE}/ISIC_9.jpg", f"{ONE}/._ISIC_1.jpg", f"{MASKS}/._ISIC_1_segmentation.png"):
        touch(root / name)
    for name in ("__MACOSX/HAM10000_metadata.csv", "._HAM10000_metadata.csv", ".DS_Store"):
        touch(root / name)
    index = SOURCE.index(str(root))
    assert (len(index.entries), index.present, index.skipped) == (4, 4, ())


def test_repeated_rows_count_once_and_contradictions_not_at_all(root):
    write_table(root, *ROWS, ROWS[0], "HAM_9,ISIC_3,mel,,,,", "HAM_3,ISIC_3,mel,,,,")
    index = read(root)
    assert ids(index) == ["ISIC_1", "ISIC_2", "ISIC_4"]
    assert [tuple(skip[:2]) for skip in index.skipped] == [
        ("ISIC_1", "row twice"),
        ("ISIC_3", "row twice"),
        ("ISIC_3", "row twice"),
        (f"{TWO}/ISIC_3.jpg", "rows disagree"),
    ]


def test_damaged_rows_are_counted(root):
    write_table(root, " HAM_1 ,ISIC_1", ",ISIC_2,nv", "HAM_3,ISIC_3,follow_up", "HAM_4,,vasc", "", ",,,,,,", "HAM_5")
    index = read(root)
    assert [(e.id, e.group, e.label) for e in index.entries] == [("ISIC_1", "HAM_1", "")]
    assert [tuple(skip[:3]) for skip in index.skipped] == [
        ("HAM10000_metadata.csv", "row without image_id", "HAM_4,,vasc"),
        ("HAM10000_metadata.csv", "row without image_id", "HAM_5"),
        (f"{ONE}/ISIC_2.jpg", "row without lesion", ""),
        (f"{TWO}/ISIC_3.jpg", "unknown class", "follow_up"),
        (f"{TWO}/ISIC_4.jpg", "image without row", ""),
    ]


def test_ids_are_never_paths(root):
    touch(root.parent / "secret.jpg")
    touch(root.parent / "secret_segmentation.png")
    hostile = ["../secret", "/etc/passwd", f"{ONE}/ISIC_1", f"../{root.name}/{ONE}/ISIC_1", "ISIC_1\0", "~", "*", "."]
    write_table(root, *ROWS, *(f"HAM_9,{name},nv" for name in hostile))
    index = read(root)
    assert ids(index) == IDS
    assert reasons(index) == dict.fromkeys(hostile, "row without image")


@pytest.mark.parametrize(
    "table",
    [
        b"\xef\xbb\xbf" + "\r\n".join((HEADER, *ROWS, "")).encode(),  # as spreadsheets save it
        "\r".join((HEADER, *ROWS)).encode(),
        "\n\n".join(("", HEADER, *ROWS)).encode(),
        "\n".join((HEADER.upper(), *ROWS)).replace(",", " , ").encode(),
        "\n".join('"' + row.replace(",", '","') + '"' for row in (HEADER, *ROWS)).encode(),
        "\n".join((HEADER, *ROWS)).replace("back", '"the ""back"",\r\n\nor so"').encode(),
        "\n".join((HEADER, *ROWS)).replace("back", '"back').encode(),  # quotes that nothing closes
        "\n".join((HEADER, *ROWS)).replace("HAM_1", '"HAM_1').encode(),
        "\n".join((HEADER, *ROWS)).replace("back", 'ba"ck').encode(),
        "\n".join((HEADER, *ROWS)).replace("back", "x" * 100_000).encode(),
        "\n".join((HEADER, *ROWS)).replace("back", "x" * 300_000).encode(),  # over the limit of the csv module
        "\n".join((HEADER, *ROWS)).replace("back", '"' + "x\n" * 20_000).encode(),
        "\n".join((HEADER, *ROWS)).encode().replace(b"back", b"r\xfcck\xff\xfe\0 \xef\xbf\xbd"),
        "\n".join(f"note,{row},,,," for row in (HEADER, *ROWS)).encode(),
        "\n".join(f'"a ""note"",\r\n\nof three lines",{row}' for row in (HEADER, *ROWS)).encode(),
    ],
)
def test_a_table_survives_its_editors(root, table):
    (root / "HAM10000_metadata.csv").write_bytes(table)
    index = read(root)
    assert [(e.id, e.label, e.group) for e in index.entries] == [
        (row.split(",")[1], row.split(",")[2], row.split(",")[0]) for row in ROWS
    ]
    assert {skip.reason for skip in index.skipped} <= {"row without image_id"}  # a line of a text that nothing closes


def test_long_fields_are_not_repeated_in_full(root):
    write_table(root, *ROWS[:3], f"HAM_4,ISIC_4,{'n' * 100_000}", f"HAM_5,{'I' * 100_000},nv", f"{'H' * 100_000},,nv")
    index = read(root)
    assert ids(index) == IDS[:3]
    assert sorted(skip.reason for skip in index.skipped) == [
        "row without image",
        "row without image_id",
        "unknown class",
    ]
    assert max(len(text) for skip in index.skipped for text in (skip.path, skip.detail)) == 200


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (b"", "needs one column image_id, lesion_id, dx:"),
        (b"\n \n\n", "needs one column image_id, lesion_id, dx:"),
        (HEADER.replace("dx,", "").encode(), "needs one column dx:"),
        (HEADER.replace("dx_type", "dx").encode(), "needs one column dx:"),
        (HEADER.replace("lesion_id", "lesion").encode(), "needs one column lesion_id:"),
        (HEADER.encode("utf-16"), "needs one column image_id, lesion_id, dx:"),
        (b"PK\3\4" + bytes(range(256)) * 20, "needs one column image_id, lesion_id, dx:"),
        (
            HEADER.encode(),
            "no usable picture (4 skipped, the first: HAM10000_images_part_1/ISIC_1.jpg: image without row)",
        ),
    ],
)
def test_a_table_of_something_else_is_one_error(root, table, complaint):
    (root / "HAM10000_metadata.csv").write_bytes(table)
    SOURCE.check(str(root))  # which reads nothing
    with pytest.raises(ConfigError) as caught:
        SOURCE.index(str(root))
    assert complaint in str(caught.value) and "\n" not in str(caught.value)
    assert str(root) in str(caught.value)


def test_links_never_lead_out_of_the_root(root):
    secret = touch(root.parent / "secret.jpg")
    touch(root.parent / "folder" / "ISIC_9.jpg")
    (root / TWO / "ISIC_3.jpg").unlink()
    (root / TWO / "ISIC_3.jpg").symlink_to("../../secret.jpg")
    (root / MASKS / "ISIC_4_segmentation.png").unlink()
    (root / MASKS / "ISIC_4_segmentation.png").symlink_to(secret)
    (root / ONE / "ISIC_5.jpg").symlink_to("ISIC_5.jpg")
    (root / ONE / "ISIC_6.jpg").symlink_to("absent.jpg")
    (root / ONE / "circle").symlink_to(root)
    (root / ONE / "away").symlink_to(root.parent / "folder")
    index = read(root)
    assert ids(index) == ["ISIC_1", "ISIC_2"]
    assert reasons(index) == {
        f"{ONE}/ISIC_5.jpg": "not a file",
        f"{ONE}/ISIC_6.jpg": "not a file",
        f"{TWO}/ISIC_3.jpg": "outside the root",
        f"{TWO}/ISIC_4.jpg": "no mask",
        f"{MASKS}/ISIC_4_segmentation.png": "outside the root",
        f"{MASKS}/ISIC_3_segmentation.png": "mask without image",
        "ISIC_3": "row without image",
    }


def test_a_link_that_stays_inside_is_followed(root):
    (root / TWO / "ISIC_3.jpg").rename(root / "blob")
    (root / TWO / "ISIC_3.jpg").symlink_to("../blob")
    assert ids(read(root)) == IDS


def test_what_is_no_file_is_skipped(root):
    (root / ONE / "ISIC_1.jpg").unlink()
    (root / ONE / "ISIC_1.jpg").mkdir()
    os.mkfifo(root / ONE / "ISIC_7.jpg")  # opening it would wait for ever
    Path(os.fsdecode(os.fsencode(root) + b"/ISIC_\xff.jpg")).touch()
    index = read(root)
    assert ids(index) == IDS[1:]
    assert reasons(index) == {
        f"{ONE}/ISIC_7.jpg": "not a file",
        "ISIC_\ufffd.jpg": "name is not UTF-8",
        "ISIC_1": "row without image",
        f"{MASKS}/ISIC_1_segmentation.png": "mask without image",
    }


@pytest.mark.parametrize("kind", ["folder", "pipe", "link out", "loop"])
def test_a_table_that_is_no_file_is_none(root, kind):
    table = root / "HAM10000_metadata.csv"
    table.rename(root.parent / "table.csv")
    if kind == "folder":
        table.mkdir()
    elif kind == "pipe":
        os.mkfifo(table)
    else:
        table.symlink_to("../table.csv" if kind == "link out" else table.name)
    assert "has no HAM10000_metadata.csv" in refused(root)


def test_a_wrong_folder_is_refused_with_a_remedy(root, tmp_path):
    assert "is empty" in refused("")
    assert "no folder" in refused(tmp_path / "absent")
    assert "no folder" in refused("nul\0byte")
    assert "no folder" in refused(root / "HAM10000_metadata.csv")
    assert "has no HAM10000_metadata.csv" in refused(root / ONE)
    for mask in list((root / MASKS).iterdir()):
        mask.unlink()
    assert "unpack HAM10000_segmentations_lesion_tschandl" in refused(root)
    for image in list(root.rglob("*.jpg")):
        image.unlink()
    assert "unpack HAM10000_images_part_1 and 2" in refused(root)
