"""Texts whose clauses are not known: a flow that listens to words about the other channel is punished."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import phantom
from tests.test_factor_flow import batch_of, stage_of
from vgjax import build, losses, pipeline
from vgjax.config import ConfigError, from_config_dict
from vgjax.stages import text_to_factors
from vgjax.stages.text_to_factors import word_shares
from vgjax.types import CHANNELS

OTHER = {"anatomy": "modality", "modality": "anatomy"}


def texts(levels, said=(True, True), width=16):
    """Embeddings (N, width): of each channel, one of two words for its level, 0 or 1, or none."""
    out = np.zeros((len(levels["anatomy"]), width), np.float32)
    for i, (name, told) in enumerate(zip(CHANNELS, said, strict=True)):
        out[np.arange(len(out)), 2 * i + levels[name]] = 2.0 * np.asarray(told)
    return out


def captioned(one, count=1024):
    """Pictures of which both channels agree in nine of ten, and texts that leave each unsaid in three of ten."""
    rng = np.random.default_rng(0)
    anatomy = rng.integers(0, 2, count)
    levels = {"anatomy": anatomy, "modality": np.where(rng.random(count) < 0.9, anatomy, 1 - anatomy)}
    rows, basis = batch_of(one._config, count), {}
    rows |= dict.fromkeys((f"{c}_text" for c in CHANNELS), jnp.asarray(texts(levels, rng.random((2, count)) < 0.7)))
    for name, flow in one._flows.items():
        shown = 0.3 * rng.normal(size=(count, rows[name][0].size))
        shown[:, 0] += 2 * levels[name] - 1
        rows[name] = jnp.asarray(shown.reshape(rows[name].shape), jnp.float32)
        basis |= {f"{name}_mean": jnp.zeros(shown.shape[1]), f"{name}_whiten": jnp.eye(shown.shape[1], flow.features)}
    return rows, basis


def frozen_of(one, rows, basis, monkeypatch):
    """What the stage reads before training, from rows as they are stored."""
    host = jax.device_get(rows)
    stored = [
        {name: value[i][None] if "text" in name else value[i] for name, value in host.items()}
        for i in range(len(host["mask"]))
    ]
    monkeypatch.setattr(text_to_factors, "paired", lambda context, columns, split: stored)
    monkeypatch.setattr(one, "_context", types.SimpleNamespace(variables=lambda name: basis))
    one.__dict__.pop("frozen", None)
    return one.frozen


def trained(one, rows, frozen, steps=200):
    params, tx = one.init(jax.random.key(0))[0], optax.adam(3e-3)

    def step(state, key):
        chosen = jax.random.randint(key, (64,), 0, len(rows["mask"]))
        batch = jax.tree.map(lambda column: column[chosen], rows)

        def total(p):
            terms, _ = one.loss(p, {}, frozen, batch, key)
            return sum(weight * terms[name].mean() for name, weight in one.weights.items() if weight)

        updates, moments = tx.update(jax.grad(total)(state[0]), state[1])
        return (optax.apply_updates(state[0], updates), moments), None

    keys = jax.random.split(jax.random.key(1), steps)
    return jax.jit(lambda state: jax.lax.scan(step, state, keys))((params, tx.init(params)))[0][0]


def moved(one, params, channel, word):
    """How far a channel's first component moves with a word, its own or the other's, that is all a text says."""
    flow = build.Model(one._flows[channel], {"params": params[channel]})
    levels = dict.fromkeys(CHANNELS, np.repeat([0, 1], 64))
    given = {"text": jnp.asarray(texts(levels, [name == word for name in CHANNELS]))}
    keep = {"text": jnp.ones(128, bool)}
    if channel == "anatomy":
        given |= {"mask": jnp.zeros((128, build.mask_cells(one._config) ** 2))}
        keep |= {"mask": jnp.zeros(128, bool)}
    noise = jnp.tile(jax.random.normal(jax.random.key(2), (64, flow.module.features)), (2, 1))
    drawn = pipeline.draw_factors(flow, given, keep, noise, jnp.float32(1.0), 10)[:, 0]
    return float((drawn[64:] - drawn[:64]).mean())


def test_words_of_the_other_channel_are_unlearnt_and_the_own_are_not(monkeypatch):
    leak, own, heard = {}, {}, {}
    for weight in (0.0, 3.0):
        one = stage_of(**{"disentangler.weight_independence": weight})
        rows, basis = captioned(one)
        frozen = frozen_of(one, rows, basis, monkeypatch)
        assert ("shares" in frozen) == bool(weight)
        params = trained(one, rows, frozen)
        leak[weight] = max(abs(moved(one, params, name, OTHER[name])) for name in CHANNELS)
        own[weight] = min(moved(one, params, name, name) for name in CHANNELS)
        weights = {name: jnp.square(params[name]["text"]["kernel"]).sum(1) for name in CHANNELS}
        heard[weight] = float(
            (weights["anatomy"][2:4].sum() + weights["modality"][:2].sum())
            / sum(weight[:4].sum() for weight in weights.values())
        )
    assert leak[0.0] > 0.7 and leak[3.0] < 0.3 * leak[0.0]
    assert own[3.0] > max(1.0, 0.6 * own[0.0])
    assert heard[3.0] < 0.3 * heard[0.0]


def test_a_word_belongs_to_the_channel_that_it_explains_beside_the_others():
    rows, basis = captioned(stage_of())
    parts = pipeline.to_components(text_to_factors.Factors(rows["anatomy"], rows["modality"]), basis)
    shares = word_shares({name: (np.asarray(rows[f"{name}_text"]), np.asarray(parts[name])) for name in CHANNELS})
    for i, name in enumerate(CHANNELS):
        assert (shares[name][2 * i : 2 * i + 2] > 0.7).all()
        np.testing.assert_allclose(shares[name][4:], 0.5, atol=0.01)  # never used
        np.testing.assert_allclose(shares[name] + shares[OTHER[name]], 1.0, atol=1e-6)


def test_the_penalty_is_the_share_of_foreign_words_in_what_is_heard():
    kernel, text = jnp.asarray([[3.0, 4.0], [5.0, 0.0]]), jnp.asarray([[1.0, 0.0], [1.0, 2.0]])
    # Strength 25 * 1 and 25 * 2; the second word is foreign by three quarters.
    found = losses.foreign_words(kernel, jnp.asarray([1.0, 0.25]), text)
    assert float(found) == pytest.approx(50 * 0.75 / 75)
    assert float(losses.foreign_words(kernel * 7, jnp.asarray([1.0, 0.25]), text)) == pytest.approx(0.5)
    assert float(losses.foreign_words(kernel, jnp.zeros(2), text * 0)) == 0.0
    assert np.isfinite(jax.grad(losses.foreign_words)(kernel * 0, jnp.zeros(2), text)).all()


def test_without_weight_nothing_is_added():
    one = stage_of()
    assert one.weights["independence"] == 0.0
    rows, basis = captioned(one, 8)
    params, _ = one.init(jax.random.key(0))
    assert set(one.loss(params, {}, {"basis": basis}, rows, jax.random.key(0))[0]) == set(CHANNELS)


@pytest.mark.parametrize(
    "changes", [{"disentangler.method": "regression"}, {"text_encoder.kind": "bert", "text_encoder.path": "folder"}]
)
def test_what_has_no_words_of_its_own_is_refused(changes):
    c = phantom.get_config()
    c.update_from_flattened_dict({"disentangler.weight_independence": 3.0, **changes})
    with pytest.raises(ConfigError, match=r"weight_independence' is 3\.0: .*set disentangler\.method to 'flow'"):
        from_config_dict(c)
