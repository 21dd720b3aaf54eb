"""Damaged artefacts and files of a trained run: one sentence, exit code 2, nothing made; the remedy it names helps."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.in_process import PHANTOM, refused, run

METRICS = "--config.evaluate.metrics=('control',)"
SMALL = [PHANTOM, METRICS, "--config.prior.train.schedule=plateau", "--config.denoiser.weight_colour=0.5"]
SAMPLE = ["--mode=sample", "--prompt=a small lesion", "--n=1"]
REPORT = ["--mode=report"]
READ_BY = {  # file of a run's store -> a mode that reads it
    "vocabulary-*/vocabulary.json": SAMPLE,
    "condition-*/variables.safetensors": SAMPLE,
    "prior-*/variables.safetensors": SAMPLE,
    "disentangler-*/variables.safetensors": SAMPLE,
    "denoiser-*/variables.safetensors": SAMPLE,
    "factors-*/statistics.safetensors": SAMPLE,
    "evaluation-*/metrics.json": REPORT,
    "evaluation-*/readings.json": REPORT,
    "drawn_captions-*/drawn.array_record": REPORT,
    "pictures-*/phantom/1.0.0/dataset_info.json": REPORT,
    "pictures-*/phantom/1.0.0/features.json": REPORT,
    "pictures-*/phantom/1.0.0/phantom-test.array_record-*": REPORT,
    "pictures-*/prepare_report.json": REPORT,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a finished run and its store."""
    folder = tmp_path_factory.mktemp("trained")
    os.chdir(Path(__file__).parents[1])
    found = run(*SMALL, f"--workdir={folder}/run")
    assert found.code == 0, found
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A copy of it."""
    monkeypatch.chdir(Path(__file__).parents[1])
    return shutil.copytree(trained, tmp_path / "copy")


def command(here: Path, *arguments: str) -> list[str]:
    return [*SMALL, f"--workdir={here}/run", *arguments]


def damage(path: Path, kind: str, share: float = 0.5, bit: int = 0) -> None:
    """Something that happens to files; `share`: how far into one."""
    data = path.read_bytes()
    place = int(len(data) * share)
    path.unlink()
    if kind == "cut":
        path.write_bytes(data[:place])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "flipped":
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "longer":
        path.write_bytes(data + b"x")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to(path.with_name("nowhere"))


KINDS = ["cut", "empty", "flipped", "folder", "missing", "longer", "loop", "pipe"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", READ_BY)
def test_damaged_files(here, pattern, kind):
    if kind == "flipped" and "array_record-" in pattern:
        pytest.skip("a damaged record costs itself")
    (path,) = (here / "store").glob(pattern)
    damage(path, kind)
    told = refused(here, "", *command(here, *READ_BY[pattern]), silent=False)
    assert path.relative_to(here / "store").parts[0] in told and "delete the" in told


@pytest.mark.parametrize("kind", [*KINDS[:2], *KINDS[3:]])
@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        ("denoiser", SAMPLE, "stage 'denoiser' of this config is not trained"),
        ("prior", SAMPLE, "stage 'prior' of this config is not trained"),
        ("denoiser", ["--mode=evaluate"], "stage 'denoiser' of this config is not trained"),
        ("evaluation", REPORT, "run --mode=evaluate first"),
        ("denoiser", ["--mode=train"], "has no readable manifest.json: delete it and run again"),
        ("evaluation", ["--mode=evaluate"], "has no readable manifest.json: delete it and run again"),
        ("evaluation", [], "has no readable manifest.json: delete it and run again"),
    ],
)
def test_damaged_manifests(here, name, arguments, match, kind):
    (path,) = (here / "store").glob(f"{name}-*/manifest.json")
    damage(path, kind)
    making = "run again" in match  # what takes the artefact's lock
    refused(here, match, *command(here, *arguments), silent=False, untouched=not making)


@pytest.mark.parametrize("text", ["null", "[]", "{}", '{"name": 3}', "1e999", "\ufeff{}", '"\\ud800"'])
def test_manifests_of_another_kind(here, text):
    (path,) = (here / "store").glob("denoiser-*/manifest.json")
    path.write_text(text)
    refused(here, "is not trained", *command(here, *SAMPLE))
    found = run(*command(here, "--mode=status"))
    assert found.code == 0 and "has no readable manifest.json: delete it" in found.out


def test_the_remedy_that_is_named_helps(here):
    (path,) = (here / "store").glob("evaluation-*/metrics.json")
    before = path.read_bytes()
    damage(path, "flipped")
    told = refused(here, "delete the folder", *command(here, *REPORT), silent=False)
    shutil.rmtree(told.split("delete the folder ")[1].split(" and run again")[0])
    assert run(*command(here)).code == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("arguments", [SAMPLE, ["--mode=evaluate"], REPORT, ["--mode=export"]], ids=lambda a: a[0])
def test_a_mistyped_workdir_beside_the_store(here, arguments):
    refused(here, "holds no run", *SMALL, f"--workdir={here}/typo", *arguments)


def test_an_export_that_cannot_be_makes_nothing(here):
    refused(here, "train with the variant :reference", *command(here, "--mode=export"), silent=False)


# ---------------------------------------------------------------- what is asked for by files


def picture(kind: str, path: Path) -> Path:
    """A file that is no picture, or none that can be read."""
    image = np.zeros((32, 32, 3), np.uint8)
    Image.fromarray(image).save(path, "PNG")
    data = path.read_bytes()
    path.unlink()
    contents = {"text": b"no picture", "empty": b"", "cut": data[:-30], "small": b"", "html": b"<html></html>"}
    if kind in contents:
        path.write_bytes(contents[kind])
    if kind == "small":
        Image.fromarray(image[:4, :4]).save(path, "PNG")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "outside":
        path.symlink_to("/dev/zero")
    elif kind == "long":
        return path.with_name("n" * 300 + ".png")
    return path


@pytest.mark.parametrize(
    "kind", ["missing", "text", "empty", "cut", "small", "html", "folder", "pipe", "loop", "outside", "long"]
)
@pytest.mark.parametrize("flag", ["anatomy", "modality", "mask", "edit"])
def test_what_is_no_picture(here, flag, kind):
    path = picture(kind, here / "picture.png")
    refused(here, f"--{flag}: '" if kind != "loop" else str(path), *command(here, "--mode=sample", f"--{flag}={path}"))


@pytest.mark.parametrize("kind", ["missing", "text", "pipe"])
@pytest.mark.parametrize("flag", ["anatomy_to", "modality_to"])
def test_ends_that_are_no_pictures(here, flag, kind):
    path = picture(kind, here / "picture.png")
    refused(here, "cannot be used", *command(here, "--mode=sample", "--prompt=x", f"--{flag}={path}"))


@pytest.mark.parametrize("kind", ["nowhere", "file", "empty", "cut", "folder", "flipped", "pipe", "loop", "missing"])
def test_workdirs_that_cannot_be_compared(here, kind):
    other = here / "other"
    if kind == "file":
        other.write_text("x")
    elif kind != "nowhere":
        shutil.copytree(here / "run", other)
        path = other / "config.json"
        if kind == "flipped":
            path.write_text(path.read_text().replace('"seed"', '"sead"'))
        else:
            damage(path, kind)
    refused(
        here,
        "--compare: '" if kind != "flipped" else "unknown config key 'sead'",
        *command(here, "--mode=report", f"--compare={other}"),
    )


def test_a_store_that_is_noted_and_gone(here):
    other = shutil.copytree(here / "run", here / "other")
    noted = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**noted, "store": "../nowhere"}))
    refused(here, "holds no evaluation", *command(here, "--mode=report", f"--compare={other}"))
