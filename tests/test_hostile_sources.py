"""Each dataset with pictures that are too few, equal, black or broken, or with empty masks: told before training."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from tests import mimic_tree, test_covid_cxr, test_ham10000_source
from tests.in_process import Outcome, run

Files = list[pathlib.Path]


def discs(images: Files, masks: Files) -> None:
    """Draws another disc into each picture and its mask."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :60]
    for image, mask in zip(images, masks, strict=True):
        disc = np.hypot(x - rng.uniform(15, 45), y - rng.uniform(15, 33)) < rng.uniform(8, 14)
        for path, pixels in ((image, rng.integers(0, 99, (48, 60)) + 99 * disc), (mask, 255 * disc)):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)


def busi(root: pathlib.Path, count: int) -> tuple[Files, Files]:
    images = [root / "benign" / f"benign ({number}).png" for number in range(count)]
    return images, [path.with_name(f"{path.stem}_mask.png") for path in images]


def kvasir_seg(root: pathlib.Path, count: int) -> tuple[Files, Files]:
    images, masks = ([root / folder / f"c{number}.png" for number in range(count)] for folder in ("images", "masks"))
    return images, masks


def ham10000(root: pathlib.Path, count: int) -> tuple[Files, Files]:
    root.mkdir()
    test_ham10000_source.write_table(root, *(f"HAM_{n},ISIC_{n},nv,histo,45.0,male,back" for n in range(count)))
    images = [root / test_ham10000_source.ONE / f"ISIC_{number}.jpg" for number in range(count)]
    masks = [root / test_ham10000_source.MASKS / f"ISIC_{number}_segmentation.png" for number in range(count)]
    return images, masks


def covid_cxr(root: pathlib.Path, count: int) -> tuple[Files, Files]:
    names = [f"{number}.png" for number in range(count)]
    rows = [{"filename": name, "patientid": str(number), "clinical_notes": "x"} for number, name in enumerate(names)]
    test_covid_cxr.make(root, *rows, names=tuple(names))
    return [root / "images" / name for name in names], [root / test_covid_cxr.DRAWN / name for name in names]


SOURCES = {"busi": busi, "kvasir_seg": kvasir_seg, "ham10000": ham10000, "covid_cxr": covid_cxr}


def mimic(root: pathlib.Path, count: int) -> Files:
    mimic_tree.make(root, patients=count, chexmask=False)
    return sorted(root.glob("files/**/*.jpg"))


def prepared(source: str, root: pathlib.Path, mode: str) -> Outcome:
    flags = (f"--config.data.root={root}", f"--workdir={root.parent / 'run'}", f"--mode={mode}")
    return run(f"--config=configs/{source}.py:smoke", "--config.data.validation_fraction=0.3", *flags)


def refused(source: str, root: pathlib.Path, match: str) -> None:
    """In the mode that would train: one sentence, before any training and without an artefact."""
    ended = prepared(source, root, "run")
    assert ended.code == 2, ended
    assert ended.lines[-1].startswith("error: ") and match in ended.lines[-1], ended
    assert not list(root.parent.glob("store/*/manifest.json"))


FAULTS = {
    "equal": lambda files: [path.write_bytes(files[0].read_bytes()) for path in files],
    "black": lambda files: [Image.new("RGB", (60, 48)).save(path) for path in files],
    "broken": lambda files: [path.write_bytes(b"\x89PNG") for path in files],
    "missing": lambda files: [path.unlink() for path in files],
}
SAID = {"equal": "in 1 group(s)", "black": "in 1 group(s)", "broken": "pictures cannot be used", "missing": "data.root"}


@pytest.mark.parametrize("source", [*SOURCES, "mimic"])
@pytest.mark.parametrize("fault", FAULTS)
def test_pictures_that_teach_nothing(tmp_path, source, fault):
    root = tmp_path / "data"
    if source == "mimic":
        images = mimic(root, 9)
    else:
        images, masks = SOURCES[source](root, 9)
        discs(images, masks)
    FAULTS[fault](images)
    refused(source, root, SAID[fault])


@pytest.mark.parametrize("source", [*SOURCES, "mimic"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_pictures(tmp_path, source, count):
    root = tmp_path / "data"
    if source == "mimic":
        mimic(root, count)
    else:
        discs(*SOURCES[source](root, count))
    refused(source, root, "usable pictures in")


@pytest.mark.parametrize("source", SOURCES)
def test_masks_that_are_all_empty(tmp_path, source):
    root = tmp_path / "data"
    images, masks = SOURCES[source](root, 16)
    discs(images, masks)
    FAULTS["black"](masks)
    if source == "kvasir_seg":  # which has a polyp in every picture
        refused(source, root, "16 of 16 pictures cannot be used, the first: images/c0.png: empty mask")
    else:
        ended = prepared(source, root, "prepare")
        assert ended.code == 0 and "empty mask: nothing can be learned of it" in "\n".join(ended.lines), ended
