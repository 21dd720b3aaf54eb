"""Evaluations that are artefacts of their own: what decides them, what they leave as it is, where they are shown."""

import pytest

from configs import phantom
from tests.test_evaluate import drawn, measured, open_run  # noqa: F401
from vgjax import artefacts
from vgjax.config import from_config_dict
from vgjax.context import Run

# Digests of phantom's recipes as they were before there was any further evaluation.
BEFORE = {
    "": {
        "pictures": "81b6524433fd",
        "prior": "ccf2a5638a05",
        "vocabulary": "bdf3d55e822c",
        "wordings": "6e38b52893e2",
        "factors": "566cdd943523",
        "condition": "65f8f07b356d",
        "disentangler": "ea7bd34bf2f2",
        "denoiser": "782bc428b202",
        "drawn_captions": "f7cee8ef4562",
        "drawn_swap": "356a6a9b0a10",
        "evaluation": "090711b2d348",
    },
    "smoke": {
        "pictures": "7022f403084e",
        "prior": "c93c0b3e5c4d",
        "vocabulary": "310425648efc",
        "wordings": "4a476cd6746c",
        "factors": "98d024929da0",
        "condition": "917758b89764",
        "disentangler": "0b304da15c4f",
        "denoiser": "2f9e37d3a9bd",
        "drawn_captions": "24a49421571d",
        "drawn_swap": "e950169586fb",
        "evaluation": "b12c51a8f0a1",
    },
    "reference": {
        "pictures": "81b6524433fd",
        "prior": "c3f4eac33bca",
        "vocabulary": "bdf3d55e822c",
        "text": "f1785b79e133",
        "factors": "a320fc5da02b",
        "disentangler": "f97c121e2655",
        "condition": "dfa44dbcf1f3",
        "denoiser": "9e39e3c547ab",
        "drawn_captions": "28f8b61f177e",
        "drawn_swap": "5ea7a9d8a881",
        "evaluation": "6a1586375d54",
    },
}


@pytest.mark.parametrize("variants", BEFORE)
@pytest.mark.parametrize("metrics", [("control", "swap", "prior"), ("control", "swap", "prior", "fidelity")])
def test_further_evaluations_change_no_other_recipe(variants, metrics):
    c = phantom.get_config(variants)
    c.evaluate.metrics = metrics
    config = from_config_dict(c)
    run = Run(config, None, None, None, artefacts.producers(config))
    digests = {name: run.recipe(name).digest for name in run.producers}
    assert {name: digests[name] for name in BEFORE[variants]} == BEFORE[variants]
    assert set(digests) - set(BEFORE[variants]) == ({"domain", "fidelity"} if "fidelity" in metrics else set())
