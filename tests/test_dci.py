"""DCI: codes that are taken apart, mixed or leaking by construction are told as such."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import phantom as phantom_config
from tests.test_separation import OPTIONS, made_cases
from vgjax import build, pipeline
from vgjax.config import from_config_dict
from vgjax.data.sources import phantom
from vgjax.evaluation.evaluate import see
from vgjax.evaluation.metrics import METRICS, dci
from vgjax.evaluation.metrics.base import Seen
from vgjax.evaluation.readouts import PriorView
from vgjax.types import CHANNELS

CASES = made_cases(240)
CODES = np.array([[levels.index(case.levels[name]) for name, levels in phantom.FACTORS.items()] for case in CASES])
PLACES = {c: [i for i, name in enumerate(phantom.FACTORS) if phantom.CHANNEL[name] == c] for c in CHANNELS}


def measured(cases=CASES, **factors):
    real = Seen(np.zeros((1, 1, 1, 3), np.uint8), [], factors=factors)
    return {name: one.value for name, one in METRICS["dci"].run(cases, {}, real, OPTIONS)}


def own():
    """Each channel holds the levels of its own factors, each as a code a level."""
    return {channel: np.concatenate([one_hot(place) for place in places], axis=1) for channel, places in PLACES.items()}


def one_hot(place):
    """Codes of unlike scales, so that principal components keep to them."""
    codes = np.eye(CODES[:, place].max() + 1)[CODES[:, place]]
    return codes * (2.0**place + np.arange(codes.shape[1]) / 10)


def test_separate_codes_are_disentangled_complete_and_informative():
    found = measured(**own())
    assert found["dci/disentanglement"] > 0.95
    assert 0.65 < found["dci/completeness"] < 0.85  # a factor takes as many components as its levels need
    assert found["dci/informativeness"] > 0.95
    for factor, channel in phantom.CHANNEL.items():
        other = next(c for c in CHANNELS if c != channel)
        assert found[f"dci/{channel}/{factor}"] > 0.95
        assert found[f"dci/{other}/{factor}"] == pytest.approx(found[f"dci/chance/{factor}"], abs=0.2)


def test_a_leak_is_told_by_factor():
    codes = own()
    leaking = np.concatenate([codes["anatomy"], one_hot(8)], axis=1)
    found = measured(anatomy=leaking, modality=codes["modality"])
    assert found["dci/anatomy/blur"] > 0.9 and found["dci/anatomy/texture"] < 0.7


def test_rotated_codes_are_as_informative_and_less_disentangled():
    mixed = {}
    for channel, codes in own().items():
        turn = np.linalg.qr(np.random.default_rng(1).normal(size=2 * (codes.shape[1],)))[0]
        mixed[channel] = (codes - codes.mean(0)) / codes.std(0) @ turn
    found, plain = measured(**mixed), measured(**own())
    assert found["dci/disentanglement"] < plain["dci/disentanglement"] - 0.3
    assert found["dci/completeness"] < plain["dci/completeness"] - 0.3


def test_the_first_half_is_learnt_and_the_second_scored():
    """Codes without meaning in the second half are not mended by having been seen."""
    codes = own()
    for channel in CHANNELS:
        codes[channel][len(CASES) // 2 :] = 0.0
    assert measured(**codes)["dci/informativeness"] < 0.6


def test_concentration_is_one_of_a_permutation_and_zero_of_the_even():
    assert dci.concentration(np.eye(4)[[2, 0, 1]]) == pytest.approx(1.0)
    assert dci.concentration(np.ones((3, 4))) == pytest.approx(0.0)
    assert dci.concentration(np.zeros((3, 4))) == 0.0
    # A component that matters little counts little.
    assert dci.concentration(np.array([[9.0, 0.0], [0.5, 0.5]])) == pytest.approx(0.9)


def test_factors_of_which_too_little_is_known_are_left_out():
    cases = [case._replace(levels={"size": case.levels["size"], "blur": "sharp"}) for case in CASES]
    found = measured(cases, **own())
    assert {name.rsplit("/", 1)[-1] for name in found} == {"size"}


def test_stage_1_says_what_it_finds_in_each_picture():
    config = from_config_dict(phantom_config.get_config("smoke"))
    module, pictures = build.prior(config), np.random.default_rng(0).integers(0, 256, (35, 32, 32, 3)).astype(np.uint8)
    model = build.Model(module, module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    view = PriorView(argparse.Namespace(config=config, variables=lambda name: model.variables))
    seen = see(OPTIONS, view, None, pictures)
    image = pipeline.prior_input(jnp.asarray(pictures), 32, "dataset")
    raw = pipeline.raw_factors(pipeline.encode(model, image), config.prior.grid)
    np.testing.assert_allclose(seen.factors["anatomy"], raw.anatomy_BggK.reshape(35, -1), atol=1e-5)
    np.testing.assert_allclose(seen.factors["modality"], raw.modality_BZ, atol=1e-4)
