"""Every loss term has the gradient that central differences find, in double precision."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import phantom
from vgjax import build, losses, pipeline
from vgjax.config import from_config_dict
from vgjax.diffusion.process import Process
from vgjax.models import appearance, vgg
from vgjax.models.dit import DiT
from vgjax.models.factor_flow import FactorFlow
from vgjax.models.prior import VisualPrior
from vgjax.models.sdnet import PriorOutput
from vgjax.stages.denoiser import Denoising
from vgjax.types import Tokens

STEP = 1e-6


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def like(tree, seed, scale=0.3):
    """Random values of the shapes of `tree`, none zero, in double precision."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: scale * rng.normal(size=a.shape), tree)


def check(value, at, differences_of=None):
    """The gradient of a scalar agrees with the differences of `differences_of`, itself if None, in three directions.

    Returns the slopes.
    """
    both = jax.jit(jax.value_and_grad(value))
    gradient, other = both(at)[1], jax.jit(differences_of) if differences_of else lambda x: both(x)[0]
    moved = lambda step, along: float(other(jax.tree.map(lambda a, d: a + step * d, at, along)))
    found, wanted = [], []
    for along in (like(at, seed, 1.0) for seed in (1, 2, 3)):
        found.append(sum(jax.tree.leaves(jax.tree.map(lambda g, d: float(np.vdot(g, d)), gradient, along))))
        wanted.append((moved(STEP, along) - moved(-STEP, along)) / (2 * STEP))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-8)
    return np.array(wanted)


# ---------------------------------------------------------------- terms as functions of what they compare

IMAGE, LESION = normal(10, 2, 8, 8, 3), (normal(11, 2, 8, 8) > 0).astype(float)
# What the terms of stage 1 look at; z is a constant for them.
PRIOR = {name: normal(12, 2, 4) for name in ("anatomy_BHWK", "anatomy_tilde_BHWK", "structure_BHWF", "z_BZ")} | {
    "segmentation_BHWS": np.abs(normal(13, 2, 8, 8, 2)),
    "reconstruction_BHWC": normal(14, 2, 8, 8, 3),
    **{name: normal(15 + i, 2, 4) for i, name in enumerate(("mu_BZ", "logvar_BZ", "mu_tilde_BZ"))},
}
TARGETS = (normal(23, 2, 2, 2, 3), normal(24, 2, 5))


def prior_term(name, *of):
    value = lambda x: losses.prior_terms(PriorOutput(**PRIOR | x), IMAGE, LESION)[name].mean()
    return value, {field: PRIOR[field] for field in of}


def text_term(name, alignment):
    outputs = (normal(20, 2, 12), normal(21, 2, 5), normal(22, 2, 7))
    return lambda x: losses.text_terms(x, TARGETS, normal(25, 2, 7), alignment)[name].mean(), outputs


def perceptual(x):
    shapes = jax.eval_shape(vgg.VGG19Features().init, jax.random.key(0), x)
    return vgg.perceptual(like(shapes, 0, 0.1), x, IMAGE).mean()


TERMS = {
    "reconstruction": prior_term("reconstruction", "reconstruction_BHWC"),
    "kl": prior_term("kl", "mu_BZ", "logvar_BZ"),
    "dice": prior_term("dice", "segmentation_BHWS"),
    "regression": prior_term("regression", "mu_tilde_BZ"),
    "rebuild": text_term("rebuild", "scaled"),
    **{f"{name} {how}": text_term(name, how) for name in ("anatomy", "modality") for how in ("scaled", "cosine")},
    "perceptual": (perceptual, normal(30, 2, 8, 8, 3)),
    "colour": (lambda x: losses.colour(x, IMAGE).mean(), normal(31, 2, 8, 8, 3)),
}


@pytest.mark.parametrize("term", TERMS)
def test_the_gradient_of_a_term_is_that_of_its_differences(term):
    assert np.abs(check(*TERMS[term])).min() > 1e-4


def test_colour_compares_means_and_spreads_of_channels():
    image, target = normal(1, 2, 6, 5, 3), 2 * normal(2, 2, 6, 5, 3)
    moments = [np.stack([x.mean((1, 2)), x.std((1, 2), ddof=1)]) for x in (image, target)]
    np.testing.assert_allclose(losses.colour(image, target), ((moments[0] - moments[1]) ** 2).mean(-1).sum(0))
    flat = jax.grad(lambda x: losses.colour(x, target).sum())(np.zeros_like(image))
    assert np.isfinite(flat).all() and np.abs(flat).max() > 0


# ---------------------------------------------------------------- terms as functions of a network's parameters


@pytest.mark.parametrize(("term", "parts"), [("consistency", "a_encoder"), ("appearance", "m_encoder appearance_head")])
def test_gradients_of_the_prior_s_own_terms(term, parts):
    """Of the parts that a term reaches past the map, whose straight-through gradient is not a derivative."""
    module = VisualPrior((4, 4), (4, 4), 4, (4,), 3, 4, appearance.STATISTICS)
    image = np.tanh(IMAGE)
    params = like(jax.eval_shape(module.init, jax.random.key(0), image)["params"], 0)

    def value(some):
        variables = {"params": params | some}
        return pipeline.prior_losses(module, variables, image, LESION, jax.random.key(1))[1][term].mean()

    assert np.abs(check(value, {name: params[name] for name in parts.split()})).min() > 1e-4


def test_gradient_of_the_factor_flow_s_error():
    flow, given = FactorFlow(5, 8, 2), {"text": normal(1, 4, 6), "mask": normal(2, 4, 9)}
    keep = {"text": np.array([True, True, False, False]), "mask": np.array([True, False, True, False])}
    parts = normal(3, 4, 5)
    params = like(jax.eval_shape(flow.init, jax.random.key(0), parts, np.ones(4), given, keep), 0)
    value = lambda p: pipeline.factor_flow_errors(build.Model(flow, p), parts, given, keep, jax.random.key(1)).mean()
    assert np.abs(check(value, params)).min() > 1e-4


@pytest.mark.parametrize("objective", ["epsilon", "v", "flow"])
def test_gradient_of_the_diffusion_error(objective):
    dit, x_0, keys = DiT(width=8, depth=1, heads=2, patch=2, out_channels=3), normal(1, 2, 4, 4, 3), jax.random.key(1)
    tokens = Tokens(normal(2, 2, 3, 6), np.ones((2, 3)), spatial_BggD=normal(3, 2, 2, 2, 8), style_BD=normal(4, 2, 8))
    params = like(jax.eval_shape(dit.init, jax.random.key(0), x_0, np.ones(2), tokens), 0)

    def value(p):
        return pipeline.diffusion_errors(build.Model(dit, p), Process(objective), x_0, tokens, keys, keys).mean()

    assert np.abs(check(value, params)).min() > 1e-4


# ---------------------------------------------------------------- the colour term through the sampler

STEPS = 3


class PartlyConstant(Denoising):
    """The stage, whose solver steps but the last few compute with other, constant parameters."""

    def __init__(self, context, constant, last):
        super().__init__(context)
        self.constant, self.cut = constant, 1000 * (last + 0.5) / STEPS  # between two times of the solver
        tokens = self.condition.tokens
        self.condition.tokens = lambda p, *rest: (tokens(p, *rest), tokens(constant["condition"], *rest))

    def dit_model(self, params, frozen):
        trained, constant = (super(PartlyConstant, self).dit_model(p, frozen) for p in (params, self.constant))
        return lambda x, t, pair: jnp.where(t[0] > self.cut, constant(x, t, pair[1]), trained(x, t, pair[0]))


@pytest.mark.parametrize(("objective", "last"), [("flow", 0), ("flow", 1), ("flow", STEPS), ("epsilon", 2)])
def test_the_colour_loss_is_differentiated_through_the_last_solver_steps(objective, last):
    c = phantom.get_config("medart+smoke")
    c.data.image_size = 16
    c.text_encoder.update(width=8, max_length=4)
    # The convolutions after the transformer stop a gradient on purpose.
    c.denoiser.update(width=16, depth=1, refine=0, colour_steps=STEPS, colour_gradient_steps=last)
    c.diffusion.objective, c.sample.solver = objective, {"flow": "euler", "epsilon": "dpmpp_2m"}[objective]
    context = types.SimpleNamespace(config=from_config_dict(c), variables=lambda name: {})
    stage = Denoising(context)
    image = np.random.default_rng(0).integers(60, 200, (2, 16, 16, 3)).astype(np.uint8)
    batch = {"image": image, "tokens": np.array([[3, 1, 5, -1], [2, 7, -1, -1]])}
    params = like(jax.eval_shape(stage.init_params, stage.frozen, jax.random.key(0)), 0, 0.15)
    term = lambda of: lambda p: of.colour_loss(p, {}, of.frozen, batch, jax.random.key(1))[0]["colour"].mean()
    compared = term(PartlyConstant(context, params, last)) if last < STEPS else None
    slopes = check(term(stage), params, compared)
    assert np.abs(slopes).min() > 1e-4 if last else not slopes.any()
