"""Seeds of 64 bits: distinct ones give distinct keys, and what a seed draws is fixed for good."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgjax import seeds

SEEDS = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 7 << 32, 2**63, 2**64 - 1]


def bits(key):
    return np.asarray(jax.random.key_data(key)).tolist()


def test_distinct_seeds_give_distinct_keys_also_in_the_upper_half_alone():
    keys = {tuple(bits(seeds.key_of(seed))) for seed in SEEDS}
    assert len(keys) == len(SEEDS)
    noise = [np.asarray(jax.random.normal(seeds.key_of(seed), (4,))) for seed in (5, 5 + (1 << 32))]
    assert np.abs(noise[0] - noise[1]).max() > 0.1


def test_halves_hold_the_whole_seed():
    halves = seeds.halves(SEEDS)
    assert halves.dtype == np.uint32 and halves.shape == (len(SEEDS), 2)
    assert [int(upper) << 32 | int(lower) for upper, lower in halves] == SEEDS
    assert seeds.halves([]).shape == (0, 2)


def test_keys_are_the_same_inside_and_outside_of_compiled_functions():
    outside = [bits(seeds.key_of(seed)) for seed in SEEDS]
    inside = jax.jit(jax.vmap(lambda halves: jax.random.key_data(seeds.key(halves))))(jnp.asarray(seeds.halves(SEEDS)))
    assert np.asarray(inside).tolist() == outside


def test_derived_seeds_never_change_and_tell_every_name_apart():
    assert seeds.derive(0) == 15041073954064335159
    assert seeds.derive(3, "evaluate", "captions", 7) == 9514402577762843534
    told = [(0, "a"), (1, "a"), (0, "b"), (0, "a", "b"), (0, "ab"), (0, "a", 1), (0, "a", "1"), (0, 'a", "b')]
    assert len({seeds.derive(*one) for one in told}) == len(told)
    assert all(0 <= seeds.derive(*one) < 1 << 64 for one in told)


@pytest.mark.parametrize(("seed", "first"), [(0, [4165894930, 804218099]), (1 << 40, [3453330862, 192255688])])
def test_the_key_of_a_seed_never_changes(seed, first):
    np.testing.assert_array_equal(bits(seeds.key_of(seed)), first)
