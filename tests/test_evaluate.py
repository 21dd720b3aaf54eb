from __future__ import annotations

import types

import numpy as np
import pytest

from vgjax.evaluation import control, evaluate


@pytest.mark.parametrize(("draws", "expected"), [(1, 1.0), (2, 0.5)])
def test_gain_over_strangers_captions_is_a_mean_over_draws(monkeypatch, draws, expected):
    """The first pictures follow their captions, later ones show nothing; a stranger's caption never fits."""
    cases = [control.TestCase(str(i), {"size": str(i)}, np.zeros((1, 1, 3)), np.zeros((1, 1))) for i in range(8)]
    asked = []

    def draw(run, sampler, texts, offset):
        asked.append((tuple(texts), offset))
        return [text if offset <= len(cases) else "nothing" for text in texts]

    monkeypatch.setattr(evaluate, "_draw", draw)
    reader = types.SimpleNamespace(channels={"size": "anatomy"}, read=lambda texts, _: [{"size": t} for t in texts])
    view = lambda texts: {"lesion": None}
    settings = types.SimpleNamespace(draws=draws, bootstrap_draws=100)
    run = types.SimpleNamespace(config=types.SimpleNamespace(seed=0, evaluate=settings))
    read = reader.read([case.caption for case in cases], None)
    values = evaluate._baseline(run, None, reader, view, cases, read)
    assert values["control_true/size"] == values["control_gain/size"] == expected
    assert values["control_gain/low/size"] == values["control_gain/high/size"] == expected
    assert values["control_shuffled/size"] == 0.0
    assert len(asked) == len({offset for _, offset in asked}) == 2 * draws - 1  # the first true pictures are at hand
    for texts, _ in asked:
        assert sorted(texts) == [case.caption for case in cases]
