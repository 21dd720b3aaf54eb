from __future__ import annotations

import numpy as np
import pytest

from vgjax.evaluation import control

CHANNELS = {"size": "anatomy", "colour": "modality", "shape": "anatomy"}


def case(**requested):
    return control.TestCase("a caption", requested, np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8))


CASES = [case(size="small", colour="red"), case(size="large"), case(colour="blue"), case(size="small")]
READ = [{"size": "small", "colour": "blue"}, {"size": None, "colour": "red"}, {"colour": "blue"}, {"size": "small"}]


def test_only_named_factors_count_and_unreadable_is_wrong():
    assert control.hits(CASES, READ, "size").tolist() == [1.0, 0.0, 1.0]
    assert control.hits(CASES, READ, "colour").tolist() == [0.0, 1.0]
    assert control.hits(CASES, READ, "shape").tolist() == []


def test_rows_and_metrics():
    chance = {"size": 1 / 3, "colour": 0.5}
    rows = control.control_rows(CASES, READ, [w.requested for w in CASES], CHANNELS, chance, seed=0, draws=200)
    assert [row.factor for row in rows] == ["size", "colour"]  # nobody asked for a shape
    values = control.as_metrics(rows, len(CASES))
    assert values["control/accuracy/size"] == pytest.approx(2 / 3)
    assert values["control/score/size"] == pytest.approx(0.5)
    assert values["control/accuracy_mean"] == pytest.approx((2 / 3 + 0.5) / 2)
    assert values["control/accuracy_mean_modality"] == 0.5
    assert values["control_real/size"] == 1.0
    assert values["control/low/size"] <= 2 / 3 <= values["control/high/size"]
    assert values["control/n"] == 4
    assert values["control/n/colour"] == 2
