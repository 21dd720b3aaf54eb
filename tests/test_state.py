import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vgjax import optim, parallel
from vgjax import state as states
from vgjax.config import Mesh, Training


def test_learning_rate_warms_up_and_decays():
    rate = optim.learning_rate(Training(steps=100, warmup_steps=10, learning_rate=2.0))
    np.testing.assert_allclose([rate(0), rate(5), rate(10), rate(100)], [0.0, 1.0, 2.0, 0.0], atol=1e-6)
    rate = optim.learning_rate(Training(schedule="constant", warmup_steps=0, learning_rate=2.0))
    assert rate(0) == rate(10_000) == 2.0


def test_clipping_bounds_the_gradient():
    params, huge = {"w": jnp.ones(3)}, {"w": jnp.full(3, 1e6)}
    clipped, free = (optim.optimizer(Training(clip_norm=c)) for c in (1.0, 0.0))
    moments = [tx.update(huge, tx.init(params), params)[1] for tx in (clipped, free)]
    norms = [float(optax.tree.norm(optax.tree.get(m, "mu"))) for m in moments]
    np.testing.assert_allclose(norms[0], 0.1, rtol=1e-5)
    assert norms[1] > 1e4


def test_muon_orthogonalises_each_inner_matrix_and_leaves_the_rest_to_adam():
    matrices = jax.random.normal(jax.random.key(0), (2, 8, 16)) * jnp.exp(jnp.arange(8.0) / 2.0)[None, :, None]
    params = {
        "blocks": {"to_q": {"kernel": matrices, "bias": matrices[:, 0]}},
        "anatomy_encoder": {"kernel": matrices[0]},
        "a_encoder": {"kernel": matrices[0].reshape(2, 2, 2, 16)},
        "proj_out": {"kernel": matrices[0]},
    }
    config = Training(optimizer="muon", clip_norm=0.0, schedule="constant", warmup_steps=0, learning_rate=1e-2)
    tx = optim.optimizer(config)
    updates = tx.update(params, tx.init(params), params)[0]
    convolution = updates["a_encoder"]["kernel"].reshape(8, 16)
    for update in (*updates["blocks"]["to_q"]["kernel"], updates["anatomy_encoder"]["kernel"], convolution):
        values = jnp.linalg.svd(update, compute_uv=False)
        assert values.max() / values.min() < 2.5  # of the gradients themselves: above 25
        np.testing.assert_allclose(jnp.sqrt(jnp.mean(jnp.square(update))), 0.2e-2, rtol=0.3)
    for update in (updates["blocks"]["to_q"]["bias"], updates["proj_out"]["kernel"]):
        sizes = jnp.abs(update)  # Adam's first step is the same in every entry
        np.testing.assert_allclose(sizes, sizes.mean() * jnp.ones_like(sizes), rtol=1e-3)


def new_state(decay=0.0):
    return states.create({"w": jnp.zeros(2)}, {}, optax.sgd(1.0), decay)


def test_ema_follows_with_delay():
    state = new_state(decay=0.9)
    for _ in range(3):
        state = states.apply_gradients(state, {"w": -jnp.ones(2)}, {}, optax.sgd(1.0), 0.9)
    assert int(state.step) == 3
    np.testing.assert_allclose(state.params["w"], [3.0, 3.0])
    assert 1.0 < float(state.ema["w"][0]) < 3.0
    assert states.final_params(state) is state.ema
    assert states.final_params(new_state()) is not None


def after(state, *scores):
    for score in scores:
        state = states.after_validation(state, score)
    return state


def test_plateau_cuts_the_rate_after_patience():
    state = after(new_state(), 1.0, *[2.0] * 5)
    assert float(state.plateau.scale) == 1.0
    state = after(state, 2.0)
    assert float(state.plateau.scale) == pytest.approx(0.1)
    moved = states.apply_gradients(state, {"w": -jnp.ones(2)}, {}, optax.sgd(1.0), 0.0)
    np.testing.assert_allclose(moved.params["w"], [0.1, 0.1], rtol=1e-6)
    state = after(state, *[2.0] * 5)
    assert float(state.plateau.scale) == pytest.approx(0.1)
    assert float(after(state, 2.0).plateau.scale) == pytest.approx(0.01)


def test_any_progress_counts_against_a_plateau():
    """A relative tolerance would take slow progress for none; a score may also be below zero."""
    slow = np.float32(1.0) - np.arange(12, dtype=np.float32) * np.finfo(np.float32).eps
    assert float(after(new_state(), *slow).plateau.scale) == 1.0
    assert float(after(new_state(), *(slow - 1)).plateau.scale) == 1.0
    assert float(after(new_state(), *slow[::-1]).plateau.scale) == pytest.approx(0.1)


def test_a_validation_leaves_the_training_step_compiled():
    """Types and places of the state stay; a compiled step refuses any other than those it was compiled for."""
    mesh = parallel.make_mesh(Mesh(data=-1, fsdp=1, tensor=1))
    create = lambda: states.create({"w": jnp.zeros(2)}, {}, optax.sgd(1.0), 0.0)
    state = jax.jit(create, out_shardings=parallel.shardings(jax.eval_shape(create), mesh))()
    step = lambda state: states.apply_gradients(state, state.params, {}, optax.sgd(1.0), 0.0)
    compiled = jax.jit(step).lower(state).compile()
    noted = after(state, 1.0)
    assert jax.tree.map(jax.typeof, noted) == jax.tree.map(jax.typeof, state)
    assert float(compiled(noted).plateau.best_value) == 1.0
