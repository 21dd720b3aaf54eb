"""The published system's networks against its own weights, inputs and outputs, through `vgjax.weights.verify`."""

import os
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vgjax.weights import verify

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
DATA = pathlib.Path(os.environ.get("VGJAX_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
GOLDEN = DATA.parent / "golden" / "reference"
COMMITTED = REPOSITORY / "tests" / "golden" / "published"

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden files in {GOLDEN}")


def copy(folder: pathlib.Path, *names: str, source: pathlib.Path = GOLDEN) -> pathlib.Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        shutil.copyfile(source / name, folder / name)  # the originals may be read-only
    return folder


def table(printed: str) -> dict[str, str]:
    """Verdict by name of what was compared."""
    rows = [line.split(maxsplit=4) for line in printed.splitlines() if line.startswith(("ok", "FAIL"))]
    return {row[4]: row[0] for row in rows}


def test_adain_matches_the_reference(capsys):
    assert verify.main([str(COMMITTED)]) == 0
    assert table(capsys.readouterr().out) == {"adain.out": "ok"}


@needs_golden
@pytest.mark.slow
def test_every_output_loss_and_gradient_matches_the_reference(capsys):
    assert verify.main([str(GOLDEN)]) == 0
    rows = table(capsys.readouterr().out)
    assert len(rows) > 200
    assert {"eval.anatomy", "train.loss.total", "hffm.tokens", "text_disentangler.loss.align"} <= set(rows)


@needs_golden
def test_the_small_networks_match_the_reference(tmp_path, capsys):
    names = ("adain.safetensors", "hffm.safetensors", "text_disentangler.safetensors")
    assert verify.main([str(copy(tmp_path / "g", *names))]) == 0
    assert set(table(capsys.readouterr().out).values()) == {"ok"}


@needs_golden
def test_a_changed_weight_is_found(tmp_path, capsys):
    folder = copy(tmp_path / "g", "text_disentangler.safetensors")
    tensors = load_file(folder / "text_disentangler.safetensors")
    tensors["params.anatomy_encoder.3.bias"][0] += 1e-5
    save_file(tensors, folder / "text_disentangler.safetensors")
    assert verify.main([str(folder)]) == 1
    rows = table(capsys.readouterr().out)
    assert rows["text_disentangler.anatomy"] == "FAIL"
    assert rows["text_disentangler.modality"] == "ok"


def test_a_nan_is_no_match():
    assert not verify.compare("x", np.array([np.nan]), np.zeros(1), 1.0).passed


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "holds none of"),
        (lambda folder: save_file({"content": np.ones((1, 2, 3, 3))}, folder / "adain.safetensors"), "lacks style"),
        (lambda folder: (folder / "adain.safetensors").write_bytes(b"?"), "cannot be read"),
    ],
)
def test_unusable_folders_exit_with_2(tmp_path, capsys, make, message):
    make(tmp_path)
    assert verify.main([str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
