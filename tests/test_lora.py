import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from vgjax.config import ConfigError
from vgjax.models import lora
from vgjax.models.dit import DiT
from vgjax.types import Tokens
from vgjax.weights.adapters import torch_module

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj", "ff.net.0.proj", "ff.net.2", "proj_out")
TARGETS += ("linear", "linear_1", "linear_2")
ADAPTER = lora.Adapter(rank=2, alpha=3.0, targets=TARGETS)
MODEL = DiT(width=16, depth=2, heads=2, patch=2, out_channels=6)


def inputs():
    keys = jax.random.split(jax.random.key(0), 2)
    tokens = Tokens(tokens_BND=jax.random.normal(keys[0], (2, 3, 12)), mask_BN=jnp.ones((2, 3)))
    return jax.random.normal(keys[1], (2, 8, 8, 3)), jnp.array([10.0, 700.0]), tokens


def random_like(tree, seed: int, scale: float = 0.2):
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return treedef.unflatten([scale * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)])


@pytest.fixture(scope="module")
def params():
    return random_like(jax.eval_shape(MODEL.init, jax.random.key(0), *inputs())["params"], 1)


@pytest.fixture(scope="module")
def fresh(params):
    return lora.init(jax.random.key(2), params, ADAPTER, torch_module)


def apply(params, adapter=None):
    variables = {"params": params}
    if adapter is not None:
        variables[lora.COLLECTION] = lora.scaled(adapter, ADAPTER.scale)
    return MODEL.apply(variables, *inputs())


def test_a_fresh_adapter_changes_nothing(params, fresh):
    np.testing.assert_array_equal(apply(params, fresh), apply(params))
    np.testing.assert_array_equal(apply(lora.merge(params, fresh, ADAPTER.scale)), apply(params))


def test_merged_and_unmerged_agree_and_differ_from_the_base(params, fresh):
    adapter = random_like(fresh, 3)
    unmerged, merged = apply(params, adapter), apply(lora.merge(params, adapter, ADAPTER.scale))
    np.testing.assert_allclose(unmerged, merged, atol=1e-4)
    assert np.abs(unmerged - apply(params)).max() > 0.1


def test_every_kernel_is_adapted_and_nothing_else(params, fresh):
    kernels = {path[:-1] for path in traverse_util.flatten_dict(params) if path[-1] == "kernel"}
    adapted = {path[:-1] for path in traverse_util.flatten_dict(fresh)}
    assert adapted == kernels  # the published targets match every linear layer and the patch embedding
    only = lora.init(jax.random.key(2), params, lora.Adapter(2, 2.0, ("attn1.to_q",)), torch_module)
    assert {path[:-1] for path in traverse_util.flatten_dict(only)} == {("blocks", "attn1", "to_q")}


def test_shapes_ranks_and_scale_of_the_initial_values(params, fresh):
    block, patch = fresh["blocks"]["attn2"]["to_k"], fresh["pos_embed_proj"]
    chex.assert_shape([block["down"], block["up"]], [(2, 16, 2), (2, 2, 16)])
    chex.assert_shape([patch["down"], patch["up"]], [(2, 2, 3, 2), (2, 16)])
    wide = {"to_q": {"kernel": jnp.zeros((500, 10))}}
    down = lora.init(jax.random.key(0), wide, lora.Adapter(8, 8.0, ("to_q",)), ".".join)["to_q"]["down"]
    assert abs(float(down.std()) - 1 / 8) < 0.01  # PEFT's gaussian: standard deviation 1 / rank


@pytest.mark.parametrize(("stabilised", "scale"), [(False, 2.0), (True, 4.0)])
def test_scale(stabilised, scale):
    assert lora.Adapter(4, 8.0, ("to_q",), stabilised).scale == scale


def test_gradients_reach_the_adapter_through_the_unmerged_pass(params, fresh):
    adapter = random_like(fresh, 3)
    grads = jax.jit(jax.grad(lambda a: jnp.square(apply(params, a)).mean()))(adapter)
    merged = jax.jit(jax.grad(lambda a: jnp.square(apply(lora.merge(params, a, ADAPTER.scale))).mean()))(adapter)
    chex.assert_trees_all_close(grads, merged, rtol=1e-3, atol=1e-5)
    for path, grad in traverse_util.flatten_dict(grads).items():
        assert np.abs(grad).max() > 0, path


def test_targets_that_match_nothing_are_refused(params):
    with pytest.raises(ConfigError, match=r"denoiser\.lora\.targets.*to_z"):
        lora.init(jax.random.key(0), params, lora.Adapter(2, 2.0, ("to_z",)), torch_module)
