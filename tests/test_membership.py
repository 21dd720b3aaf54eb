"""Membership inference: a denoiser that knows its pictures by heart is found out, and one that knows none is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from vgjax import pipeline
from vgjax.diffusion.process import Process
from vgjax.evaluation import membership

FLOW, RNG = Process("flow"), np.random.default_rng(0)
TRAINED, OTHERS = (RNG.uniform(-1, 1, (8, 6, 6, 3)).astype(np.float32) for _ in range(2))
NOISES = RNG.standard_normal((membership.NOISES, 6, 6, 3)).astype(np.float32)


def by_heart(x_t, t_B):
    """The velocity that a denoiser of eight pictures trained for ever answers with: towards their posterior mean."""
    (alpha, sigma), flat = FLOW.coefficients(t_B), jnp.asarray(TRAINED).reshape(8, -1)
    apart = jnp.square(x_t.reshape(len(x_t), 1, -1) - alpha[:, None, None] * flat[None]).sum(-1)
    mean = (jax.nn.softmax(-apart / (2 * jnp.square(sigma)[:, None])) @ flat).reshape(x_t.shape)
    return (x_t - mean) / jnp.expand_dims(sigma, (1, 2, 3))


def untrained(x_t, t_B):
    return 0.1 * x_t[..., ::-1]


def losses(denoiser, pictures):
    x_0 = jnp.asarray(pictures)

    def at(share):
        t_B = jnp.full(len(x_0), FLOW.time(share))
        errors = [pipeline.errors_at(FLOW, denoiser, x_0, t_B, jnp.broadcast_to(n, x_0.shape)) for n in NOISES]
        return np.mean(errors, axis=0)

    return np.stack([at(share) for share in membership.SHARES], 1)


def found(denoiser):
    return dict(membership.estimates(losses(denoiser, TRAINED), losses(denoiser, OTHERS), 0, 200))


def test_a_denoiser_that_knows_its_pictures_by_heart_is_found_out():
    numbers = found(by_heart)
    assert numbers["auc"]["value"] == numbers["tpr"]["value"] == 1.0
    assert numbers["auc/0.5"]["value"] > 0.99 and numbers["auc"]["n"] == 8


def test_an_untrained_denoiser_gives_nothing_away():
    numbers = found(untrained)
    low, high = numbers["auc"]["interval"]
    assert 0.2 < low < 0.5 < high < 0.8 or 0.3 < numbers["auc"]["value"] < 0.7


def test_auc_and_true_positives_are_those_of_an_independent_implementation():
    members, others = RNG.normal(0, 1, 300).round(1), RNG.normal(0.7, 1, 400).round(1)
    truth, scores = np.repeat([1, 0], (300, 400)), -np.concatenate([members, others])
    assert membership.auc(members, others) == pytest.approx(sklearn.metrics.roc_auc_score(truth, scores), abs=1e-12)
    false, true, _ = sklearn.metrics.roc_curve(truth, scores, drop_intermediate=False)
    assert membership.true_positives(members, others) == pytest.approx(true[false <= 0.01].max(), abs=1e-12)


def test_times_weigh_alike_whatever_their_losses():
    members, others = RNG.normal(0, 1, (200, 4)), RNG.normal(0.5, 1, (200, 4))
    scaled = [x * np.array([1, 1, 1, 1e4]) for x in (members, others)]
    numbers = [dict(membership.estimates(*sides, 0, 20)) for sides in ((members, others), scaled)]
    assert numbers[0]["auc"]["value"] == pytest.approx(numbers[1]["auc"]["value"])
    assert numbers[0]["auc"]["value"] > max(numbers[0][f"auc/{share}"]["value"] for share in membership.SHARES)
