"""Whole runs on datasets in their original layout."""

import json

import numpy as np
import pytest

from configs import folder, mimic
from tests import mimic_tree
from tests.test_prepare import make_root
from vgjax import run as runs


def all_rows(rows):
    return [rows[i] for i in range(len(rows))]


@pytest.mark.slow
def test_mimic_end_to_end(tmp_path):
    c = mimic.get_config("smoke")
    c.data.root = str(mimic_tree.make(tmp_path / "mimic", patients=60))
    run = runs.open_run(c, str(tmp_path / "run"))
    runs.run_all(run)
    values = json.loads((run.workdir / "metrics.json").read_text())
    assert values["estimates"]["prior/dice"]["n"] == 16 and "control/accuracy_mean" not in values
    page = (run.workdir / "report.html").read_text()
    assert "Control was not measured" in page and "source files were left out" in page
    captions = [row["caption"] for row in all_rows(run.context.rows(["pictures"], "test"))]
    assert all("___" not in caption for caption in captions)
    assert len({row["group"] for row in all_rows(run.context.rows(["pictures"], "train"))}) > 20


@pytest.mark.slow
def test_a_folder_with_measured_captions_is_read_back_through_the_segmentor(tmp_path):
    c = folder.get_config("smoke")
    c.data.update(dict(root=str(make_root(tmp_path / "data", count=80)), captions="measured", validation_fraction=0.2))
    c.evaluate.metrics = ("control", "gain", "prior")
    run = runs.open_run(c, str(tmp_path / "run"))
    runs.run_all(run)
    values = json.loads((run.workdir / "metrics.json").read_text())
    assert np.isfinite(values["control/accuracy_mean"])
    assert {"control_gain/position", "control_gain/size"} <= set(values)
