"""Stage 2, the default: a flow over whitened factors that answers an open question with a sample, not with a mean."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import phantom
from vgjax import build, parallel, pipeline
from vgjax.conditions.factors import WORDED
from vgjax.config import from_config_dict
from vgjax.context import Context
from vgjax.data.records import InMemory, Worded
from vgjax.diffusion.process import Process
from vgjax.models.factor_flow import FactorFlow
from vgjax.stages import denoiser, text_to_factors
from vgjax.stages.text_to_factors import TextToFactors
from vgjax.types import CHANNELS

M, TEXT, CELLS = 5, 7, 9


def flow_and_variables(inputs=("text", "mask"), shaken=True):
    """A small flow; shaken: its parameters moved from where it says nothing."""
    flow = FactorFlow(M, width=16, depth=2)
    x, t, given, keep = arguments(inputs=inputs)
    variables = jax.jit(flow.init)(jax.random.key(0), x, t, given, keep)
    if shaken:
        rng = np.random.default_rng(1)
        variables = jax.tree.map(lambda a: a + jnp.asarray(0.3 * rng.normal(size=a.shape), a.dtype), variables)
    return build.Model(flow, variables)


def arguments(count=6, inputs=("text", "mask"), seed=0):
    rng = np.random.default_rng(seed)
    widths = {"text": TEXT, "mask": CELLS}
    given = {name: jnp.asarray(rng.normal(size=(count, widths[name])), jnp.float32) for name in inputs}
    x = jnp.asarray(rng.normal(size=(count, M)), jnp.float32)
    return x, jnp.asarray(rng.uniform(0, 1000, count), jnp.float32), given, dict.fromkeys(inputs, jnp.ones(count, bool))


def test_a_new_flow_says_nothing():
    flow = flow_and_variables(shaken=False)
    velocity = flow(*arguments())
    assert velocity.shape == (6, M) and not velocity.any()
    assert np.abs(flow_and_variables()(*arguments())).max() > 0.01


@pytest.mark.parametrize("dropped", ["text", "mask"])
def test_what_is_dropped_is_a_null_whatever_was_given(dropped):
    flow = flow_and_variables()
    x, t, given, keep = arguments()
    none = {**keep, dropped: jnp.zeros(6, bool)}
    other = {**given, dropped: given[dropped] * 3.0 + 1.0}
    np.testing.assert_array_equal(flow(x, t, given, none), flow(x, t, other, none))
    assert np.abs(flow(x, t, given, keep) - flow(x, t, other, keep)).max() > 1e-3
    zero = {**given, dropped: given[dropped] * 0.0}  # nothing given is not the same as zeros given
    assert np.abs(flow(x, t, given, none) - flow(x, t, zero, keep)).max() > 1e-3
    # Each row by itself: the one that keeps its own is not touched by the others.
    mixed = {**keep, dropped: jnp.arange(6) > 2}
    found = flow(x, t, given, mixed)
    np.testing.assert_allclose(found[3:], flow(x, t, given, keep)[3:], atol=1e-6)
    np.testing.assert_allclose(found[:3], flow(x, t, given, none)[:3], atol=1e-6)


def test_the_null_is_trained_and_the_dropped_input_is_not():
    flow = flow_and_variables()
    x, t, given, keep = arguments()
    none = {**keep, "text": jnp.zeros(6, bool)}
    loss = lambda variables: jnp.square(build.Model(flow.module, variables)(x, t, given, none)).sum()
    grads = jax.grad(loss)(flow.variables)["params"]
    assert np.abs(grads["text_null"]).max() > 0 and not grads["text"]["kernel"].any()
    assert np.abs(grads["mask"]["kernel"]).max() > 0 and not grads["mask_null"].any()


def test_the_time_is_heard():
    flow = flow_and_variables()
    x, t, given, keep = arguments()
    assert np.abs(flow(x, t, given, keep) - flow(x, t + 300.0, given, keep)).max() > 1e-3


# ---------------------------------------------------------------- drawing

STD = 0.4


def gaussian(x, t, given, keep):
    """The best flow for factors N(text, STD^2) where text is kept and N(0, STD^2) where it is not, in closed form."""
    mean = given["text"][:, :M] * keep["text"][:, None]
    t = (t / 1000.0)[:, None]
    # x_t = (1 - t) x_0 + t eps; of a Gaussian the mean of eps - x_0 given x_t is linear in x_t.
    variance = (1 - t) ** 2 * STD**2 + t**2
    return -mean + (t - (1 - t) * STD**2) / variance * (x - (1 - t) * mean)


def draw(flow, count=4000, weight=1.0, steps=100, keep=True, mean=2.0, seed=0):
    given = {"text": jnp.full((count, TEXT), mean)}
    noise = jax.random.normal(jax.random.key(seed), (count, M))
    return pipeline.draw_factors(flow, given, {"text": jnp.full(count, keep)}, noise, jnp.float32(weight), steps)


@pytest.mark.parametrize(("keep", "mean"), [(True, 2.0), (False, 0.0)])
def test_a_flow_that_is_known_is_integrated_to_its_distribution(keep, mean):
    drawn = draw(gaussian, keep=keep)
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.02)
    assert float(drawn.std()) == pytest.approx(STD, abs=0.02)


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.0, 3.5])
def test_guidance_moves_on_from_nothing_given_towards_what_is_given(weight):
    """Of two Gaussians of equal spread the difference of velocities moves the mean by as much: 0 + weight * 2."""
    assert float(draw(gaussian, weight=weight, steps=300).mean()) == pytest.approx(2.0 * weight, abs=0.05)


def test_weight_one_is_the_flow_without_guidance():
    flow = flow_and_variables(("text",))
    _, _, given, keep = arguments(inputs=("text",))
    noise = jax.random.normal(jax.random.key(3), (6, M))
    process, steps = Process("flow"), 8
    x = noise
    for i in range(steps):
        t = jnp.full(6, 1.0 - i / steps)
        x = x - flow(x, process.network_time(t), given, keep) / steps
    drawn = pipeline.draw_factors(flow, given, keep, noise, jnp.float32(1.0), steps)
    np.testing.assert_allclose(drawn, x, atol=1e-4)
    assert np.abs(drawn - pipeline.draw_factors(flow, given, keep, noise, jnp.float32(2.0), steps)).max() > 1e-3


def test_another_weight_recompiles_nothing():
    flow, traces = flow_and_variables(("text",)), []
    _, _, given, keep = arguments(inputs=("text",))
    noise = jax.random.normal(jax.random.key(3), (6, M))

    @jax.jit
    def drawn(weight):
        traces.append(weight)
        return pipeline.draw_factors(flow, given, keep, noise, weight, 4)

    found = [drawn(jnp.float32(weight)) for weight in (0.0, 1.0, 2.0)]
    assert len(traces) == 1 and np.abs(found[0] - found[2]).max() > 1e-3


# ---------------------------------------------------------------- training


def test_the_error_of_a_perfect_flow_is_zero_and_that_of_silence_is_the_targets_own():
    parts = jnp.asarray(np.random.default_rng(0).normal(size=(M,)), jnp.float32)
    x = jnp.tile(parts[None], (4000, 1))
    # All data is one point: x_t = (1 - t) x_0 + t eps tells eps exactly.
    perfect = lambda x_t, t, given, keep: (x_t - parts[None]) / (t[:, None] / 1000.0)
    error = pipeline.factor_flow_errors(perfect, x, {}, {}, jax.random.key(0))
    assert error.shape == (4000,) and float(error.max()) < 1e-3
    silent = pipeline.factor_flow_errors(lambda x_t, *_: 0 * x_t, x, {}, {}, jax.random.key(0))
    assert float(silent.mean()) == pytest.approx(1.0 + float((parts**2).mean()), rel=0.05)


def test_an_open_question_is_answered_by_one_of_its_answers():
    """Two corners are as likely where the text says nothing: draws are in either, and none in between."""
    rng, count = np.random.default_rng(0), 256
    flow = FactorFlow(1, width=32, depth=2)
    corner = rng.choice([-2.0, 2.0], count)
    x = jnp.asarray(corner[:, None] + 0.1 * rng.normal(size=(count, 1)), jnp.float32)
    given = {"text": jnp.asarray(corner[:, None], jnp.float32)}
    keep = {"text": jnp.asarray(rng.random(count) < 0.5)}
    params = flow.init(jax.random.key(0), x, jnp.zeros(count), given, keep)["params"]
    tx = optax.adam(3e-3)

    def step(state, key):
        params, moments = state
        order = jax.random.permutation(jax.random.fold_in(key, 1), count)  # times are drawn by place in the batch
        rows = jax.tree.map(lambda column: column[order], (x, given, keep))
        total = lambda p: pipeline.factor_flow_errors(build.Model(flow, {"params": p}), *rows, key).mean()
        updates, moments = tx.update(jax.grad(total)(params), moments)
        return (optax.apply_updates(params, updates), moments), None

    keys = jax.random.split(jax.random.key(1), 600)
    (params, _), _ = jax.jit(lambda state: jax.lax.scan(step, state, keys))((params, tx.init(params)))
    model = build.Model(flow, {"params": params})
    noise = jax.random.normal(jax.random.key(2), (count, 1))
    drawn = lambda kept, text: pipeline.draw_factors(
        model, {"text": jnp.full((count, 1), text)}, {"text": jnp.full(count, kept)}, noise, jnp.float32(1.0), 25
    )[:, 0]
    open_question = np.asarray(drawn(False, 0.0))
    assert np.mean(np.abs(np.abs(open_question) - 2.0) < 0.7) > 0.85
    assert 0.25 < np.mean(open_question > 0) < 0.75
    assert np.mean(np.asarray(drawn(True, 2.0)) > 1.0) > 0.95 and np.mean(np.asarray(drawn(True, -2.0)) < -1.0) > 0.95


@functools.cache
def stage_of(**changes):
    c = phantom.get_config("smoke")
    c.update_from_flattened_dict({"text_encoder.kind": "hashing", "text_encoder.width": 16, **changes})
    config = from_config_dict(c)
    return TextToFactors(Context(config, parallel.make_mesh(config.mesh), {}.__getitem__))


def test_the_mask_is_given_to_the_anatomy_alone():
    params, _ = stage_of().init(jax.random.key(0))
    assert set(params) == set(CHANNELS)
    assert {name for name in CHANNELS if "mask" in params[name]} == {"anatomy"}
    assert all("text_null" in params[name] for name in CHANNELS)


def batch_of(config, count):
    rng = np.random.default_rng(0)
    shapes = {"anatomy": build.anatomy_shape(config), "modality": (config.prior.modality_factors,)}
    shapes |= {f"{name}_text": (config.text_encoder.width,) for name in CHANNELS}
    shapes |= {"mask": (build.mask_cells(config) ** 2,)}
    return {name: jnp.asarray(rng.normal(size=(count, *shape)), jnp.float32) for name, shape in shapes.items()}


def given_to_flows(one, monkeypatch, count=4000):
    """A batch, and what each flow is given and keeps of it in training and in validation."""
    batch, seen = batch_of(one._config, count), []

    def noting(flow, parts, given, keep, key):
        seen.append((given, keep))
        return jnp.zeros(len(parts))

    monkeypatch.setattr(text_to_factors.pipeline, "factor_flow_errors", noting)
    basis = {}
    for name in CHANNELS:
        found = pipeline.principal_components(np.asarray(batch[name]).reshape(count, -1), 12)
        basis |= {f"{name}_{part}": value for part, value in found.items()}
    params, frozen = {name: {} for name in CHANNELS}, {"basis": basis}
    one.loss(params, {}, frozen, batch, jax.random.key(0))
    one.validate(params, {}, frozen, batch, jax.random.key(0))
    return batch, seen[:2], seen[2:]


def test_training_drops_text_and_mask_at_their_rates_and_validation_hears_the_text_alone(monkeypatch):
    one = stage_of(**{"disentangler.text_dropout": 0.3, "disentangler.mask_dropout": 0.6})
    batch, training, validation = given_to_flows(one, monkeypatch)
    (anatomy, kept), (modality, kept_modality) = training
    assert set(anatomy) == {"text", "mask"} and set(modality) == set(kept_modality) == {"text"}
    np.testing.assert_array_equal(anatomy["text"], batch["anatomy_text"])
    np.testing.assert_array_equal(modality["text"], batch["modality_text"])
    assert float(kept["text"].mean()) == pytest.approx(0.7, abs=0.03)
    assert float(kept["mask"].mean()) == pytest.approx(0.4, abs=0.03)
    assert float((kept["mask"] & kept["text"]).mean()) == pytest.approx(0.28, abs=0.03)  # one by one
    assert all(keep["text"].all() for _, keep in validation) and not validation[0][1]["mask"].any()


def test_words_are_dropped_in_training_and_not_in_validation(monkeypatch):
    one = stage_of(**{"disentangler.word_dropout": 0.25})
    batch, training, validation = given_to_flows(one, monkeypatch, 500)
    heard = {name: np.asarray(given["text"]) for name, (given, _) in zip(CHANNELS, training, strict=True)}
    for name, text in heard.items():
        assert np.mean(text != 0) == pytest.approx(0.75, abs=0.03)
        np.testing.assert_array_equal(text[text != 0], np.asarray(batch[f"{name}_text"])[text != 0])
    assert ((heard["anatomy"] != 0) != (heard["modality"] != 0)).mean() > 0.3  # each channel loses its own
    for name, (given, _) in zip(CHANNELS, validation, strict=True):
        np.testing.assert_array_equal(given["text"], batch[f"{name}_text"])


def test_each_channel_learns_from_its_own_captions():
    """In training a picture is as many rows as it has further captions; each has those of its number."""
    stored = [
        {"id": i, **{f"{c}_text": np.arange(3)[:, None] + 10 * i + 100 * k for k, c in enumerate(CHANNELS)}}
        for i in range(4)
    ]
    rows = Worded(InMemory(stored), WORDED)
    assert len(rows) == 12
    found = [(row["id"], *(int(row[f"{c}_text"][0]) for c in CHANNELS)) for row in map(rows.__getitem__, range(12))]
    assert found == [(i, 10 * i + place, 100 + 10 * i + place) for i in range(4) for place in range(3)]


def test_an_example_holds_both_texts_both_channels_and_the_mask():
    row = {name: np.full(2, i, np.float16) for i, name in enumerate((*WORDED, *CHANNELS, "mask", "other"))}
    example = stage_of().example(row)
    assert set(example) == {*WORDED, *CHANNELS, "mask"}
    assert all((example[name] == row[name]).all() for name in example)
    assert all(example[name].dtype == row[name].dtype for name in example)  # cast in the step


# ---------------------------------------------------------------- times, masks and dropped channels


@pytest.mark.parametrize("batch", [1, 8, 64])
def test_uniform_times_cover_their_range_evenly(batch):
    for seed in range(5):
        times = np.asarray(Process("flow").draw_time(jax.random.key(seed), batch))
        assert np.bincount((times * batch).astype(int), minlength=batch).tolist() == [1] * batch
        assert times.min() >= 0.0 and times.max() < 1.0


def test_logit_normal_times_favour_the_middle():
    times = np.asarray(Process("flow", times="logit_normal").draw_time(jax.random.key(0), 8000))
    assert times.min() > 0.0 and times.max() < 1.0
    share = np.mean((times > 0.25) & (times < 0.75))
    assert share == pytest.approx(0.728, abs=0.02)  # |z| < log 3; evenly it would be a half
    assert np.median(times) == pytest.approx(0.5, abs=0.02)


def test_other_objectives_have_whole_timesteps_whatever_the_times_of_flow():
    for times in ("uniform", "logit_normal"):
        found = np.asarray(Process("v", timesteps=50, times=times).draw_time(jax.random.key(0), 2000))
        assert (found == found.round()).all() and found.min() == 0 and found.max() == 49


def test_the_coverage_of_a_mask_is_told_cell_by_cell():
    masks = np.zeros((4, 32, 32), np.uint8)
    masks[1] = 1
    masks[2, :16] = 1
    masks[3, 20:28, 4:12] = 1
    found = np.asarray(pipeline.mask_coverage(jnp.asarray(masks), 8)).reshape(4, 8, 8)
    assert not found[0].any() and found[1] == pytest.approx(1.0)
    assert (found[2, :3] > 0.99).all() and (found[2, 5:] < 0.01).all()
    np.testing.assert_allclose(found.mean((1, 2)), masks.mean((1, 2)), atol=0.01)
    assert np.unravel_index(found[3].argmax(), (8, 8)) in [(5, 1), (5, 2), (6, 1), (6, 2)]
    finer = pipeline.mask_coverage(jnp.asarray(masks.repeat(2, 1).repeat(2, 2)), 8)  # of a larger picture as much
    np.testing.assert_allclose(np.asarray(finer).reshape(4, 8, 8), found, atol=0.03)


def test_channels_are_dropped_one_by_one_and_together_at_their_rates():
    rates, count = {"anatomy": 0.1, "modality": 0.3}, 40_000
    keep = denoiser.kept_channels(jax.random.key(0), rates, 0.2, CHANNELS, count)
    dropped = {name: ~np.asarray(kept) for name, kept in keep.items()}
    for name, rate in rates.items():
        assert dropped[name].mean() == pytest.approx(0.2 + 0.8 * rate, abs=0.01)
    both = (dropped["anatomy"] & dropped["modality"]).mean()
    assert both == pytest.approx(0.2 + 0.8 * 0.1 * 0.3, abs=0.01)
    together = denoiser.kept_channels(jax.random.key(0), dict.fromkeys(CHANNELS, 0.0), 0.2, CHANNELS, count)
    np.testing.assert_array_equal(together["anatomy"], together["modality"])
    none = denoiser.kept_channels(jax.random.key(0), dict.fromkeys(CHANNELS, 0.0), 0.0, CHANNELS, count)
    assert all(kept.all() for kept in none.values())
