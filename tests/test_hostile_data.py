"""Values and folders that no dataset can be read with: one sentence and exit code 2, before anything is made."""

import os
import pathlib

import pytest

from tests.in_process import run
from tests.test_prepare import make_root

SOURCES = ("busi", "covid_cxr", "folder", "ham10000", "kvasir_seg", "mimic")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    return make_root(tmp_path_factory.mktemp("hostile") / "data", count=4)


def refused(tmp_path: pathlib.Path, match: str, *arguments: str) -> None:
    """The command ends in one sentence that says so, and leaves nothing behind."""
    ended = run(*arguments, f"--workdir={tmp_path / 'runs' / 'one'}")
    assert ended.code == 2, ended
    (line,) = ended.lines
    assert line.startswith("error: ") and match in line and ended.out == ""
    assert not (tmp_path / "runs").exists()


PHANTOM = [
    ("train_items=0", "give a number in (1, 1048576)"),
    ("train_items=1", "'data.train_items' is 1: give"),
    ("train_items=-5", "'data.train_items' is -5: give"),
    ("train_items=1000000000000", "'data.train_items' is 1000000000000: give"),
    ("train_items=many", "many"),
    ("validation_items=0", "give a number in (0, 1048576)"),
    ("validation_items=-1", "'data.validation_items' is -1"),
    ("validation_items=1000000000", "'data.validation_items' is 1000000000"),
    ("test_items=0", "give a number in (0, 1048576)"),
    ("test_items=-1", "'data.test_items' is -1"),
    ("test_items=1000000000", "'data.test_items' is 1000000000"),
    ("image_size=0", "'data.image_size' is 0: give a number in (0, 8192)"),
    ("image_size=-32", "'data.image_size' is -32"),
    ("image_size=33", "must be divisible by 4"),
    ("image_size=1000000", "'data.image_size' is 1000000: give"),
    (f"image_size={10**30}", "give a number in (0, 8192)"),
    ("image_size=32.5", "image_size"),
    ("views=0", "'data.views' is 0"),
    ("views=3", "set it to 1"),
    ("views=1000000000", "give a number in (0, 1024)"),
    ("wordings=0", "'data.wordings' is 0"),
    ("wordings=1000000000", "give a number in (0, 1024)"),
    ("workers=-1", "'data.workers' is -1"),
    ("workers=1000000", "give a number in [0, 1024)"),
    ("max_bad_fraction=1.0", "'data.max_bad_fraction' is 1.0"),
    ("max_bad_fraction=-0.1", "'data.max_bad_fraction' is -0.1"),
    ("max_bad_fraction=nan", "'data.max_bad_fraction' is nan: give a finite number"),
    ("max_pixels=0", "'data.max_pixels' is 0"),
    ("max_pixels=-1", "'data.max_pixels' is -1"),
    ("validation_fraction=1.0", "'data.validation_fraction' is 1.0"),
    ("validation_fraction=0.8", "and data.validation_fraction 0.8: their sum must be below 1"),
    ("validation_fraction=-0.5", "'data.validation_fraction' is -0.5"),
    ("test_fraction=0.96", "'data.test_fraction' is 0.96 and data.validation_fraction 0.05"),
    ("test_fraction=inf", "'data.test_fraction' is inf"),
    ("aspect=oval", "choose one of crop, pad, stretch"),
    ("captions=none", "choose one of own, measured, both"),
    ("intensity=log", "choose one of dataset, per_image"),
    ("source=imagenet", "choose one of phantom, ham10000"),
    ("label_in_caption=maybe", "label_in_caption"),
    ("shuffle_captions=2", "shuffle_captions"),
    ("noise_factors=perhaps", "noise_factors"),
    ("captions_file=captions.jsonl", "'data.captions_file' is 'captions.jsonl' with data.source 'phantom'"),
    ("splits=lists", "'data.splits' is 'lists' with data.source 'phantom'"),
]


@pytest.mark.parametrize(("key", "match"), PHANTOM)
def test_values_out_of_bounds(tmp_path, key, match):
    refused(tmp_path, match, "--config=configs/phantom.py:smoke", "--mode=prepare", f"--config.data.{key}")


def empty(folder: pathlib.Path) -> str:
    folder.mkdir()
    return str(folder)


def a_file(folder: pathlib.Path) -> str:
    folder.write_bytes(b"PK")
    return str(folder)


def another_dataset(folder: pathlib.Path) -> str:
    (folder / "DICOM" / "ST0").mkdir(parents=True)
    (folder / "DICOMDIR").write_bytes(b"")
    (folder / "DICOM" / "ST0" / "IM0.txt").write_bytes(b"no picture")
    return str(folder)


def a_circle(folder: pathlib.Path) -> str:
    folder.symlink_to(folder)
    return str(folder)


ROOTS = {
    "none": (lambda folder: "", "'data.root' is empty: name"),
    "missing": (str, "no folder"),
    "empty": (empty, "'data.root'"),
    "a file": (a_file, "no folder"),
    "another dataset": (another_dataset, "'data.root'"),
    "a circle of links": (a_circle, "no folder"),
    "a name too long": (lambda folder: str(folder.with_name("x" * 300)), "File name too long"),
    "bytes that are no text": (lambda folder: str(folder) + "\udcff", "no folder"),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", ROOTS)
def test_roots_that_hold_no_dataset(tmp_path, source, kind):
    make, match = ROOTS[kind]
    flag = f"--config.data.root={make(tmp_path / 'data')}"
    refused(tmp_path, match, f"--config=configs/{source}.py:smoke", "--mode=prepare", flag)


CAPTIONS = {
    "missing": ("", "No such file or directory"),
    "a folder": (None, "cannot read '"),
    "no JSON": (b"a,b\nc,d\n", "line 1 is not a JSON object"),
    "no caption": (b'{"id": "a"}\n{"id": "b"}\n', "line 1 is not a JSON object with the texts 'id' and 'caption'"),
    "numbers": (b'{"id": 1, "caption": "x"}\n\n', "line 1 is not a JSON object"),
    "two captions of one picture": (
        b'{"id": "a", "caption": "x"}\n{"id": "a", "caption": "y"}\n',
        "a second caption of 'a'",
    ),
    "Latin-1": ('{"id": "a", "caption": "L\xe4sion"}\n{}\n'.encode("latin-1"), "line 1 is not"),
}


@pytest.mark.parametrize("kind", CAPTIONS)
def test_captions_files_that_are_none(tmp_path, root, kind):
    content, match = CAPTIONS[kind]
    path = tmp_path / "captions"
    if content:
        path.write_bytes(content)
    elif content is None:
        path.mkdir()
    flags = (f"--config.data.root={root}", f"--config.data.captions_file={path}")
    refused(tmp_path, match, "--config=configs/folder.py:smoke", "--mode=prepare", *flags)


LISTS = {
    "one missing": ({"train": b"a\n", "test": b"b\n"}, "validation.txt'"),
    "an id twice": ({"train": b"a\nb\n", "validation": b"c\n", "test": b"b\n"}, "the id 'b' stands in train.txt too"),
    "none to train on": ({"train": b"\n", "validation": b"c\n", "test": b"b\n"}, "lists no id"),
    "Latin-1": ({"train": b"L\xe4sion\n", "validation": b"c\n", "test": b"b\n"}, "is not UTF-8"),
    "a quote left open": ({"train": b'"a\n', "validation": b"c\n", "test": b"b\n"}, "line 1 is not a JSON string"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_splits_that_are_none(tmp_path, root, kind):
    lists, match = LISTS[kind]
    (tmp_path / "lists").mkdir()
    for split, content in lists.items():
        (tmp_path / "lists" / f"{split}.txt").write_bytes(content)
    flags = (f"--config.data.root={root}", f"--config.data.splits={tmp_path / 'lists'}")
    refused(tmp_path, match, "--config=configs/folder.py:smoke", "--mode=prepare", *flags)


def test_a_root_that_may_not_be_read(tmp_path, root, monkeypatch):
    real = os.scandir

    def forbidden(path):
        if pathlib.Path(path) == root:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    flag = f"--config.data.root={root}"
    refused(tmp_path, "Permission denied", "--config=configs/folder.py:smoke", "--mode=prepare", flag)
