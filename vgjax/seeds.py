"""Randomness from a seed of 64 bits, fixed for good: what a seed draws does not change from one version to the next."""

import hashlib
import json

import jax
import numpy as np

HALF = (1 << 32) - 1


def derive(seed: int, *names: str | int) -> int:
    """A seed of 64 bits for one use of a run's seed, such as `derive(seed, "prior", "init")`."""
    text = json.dumps([seed, *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def halves(seeds: list[int]) -> np.ndarray:
    """Upper and lower 32 bits of each seed, (B, 2) uint32: what compiled functions take."""
    return np.array([(seed >> 32 & HALF, seed & HALF) for seed in seeds], np.uint32).reshape(-1, 2)


def key(halves_2: jax.Array | np.ndarray) -> jax.Array:
    """The random key of one seed's halves (2,): distinct seeds, distinct keys."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), halves_2[0]), halves_2[1])


def key_of(seed: int) -> jax.Array:
    """The random key of a seed."""
    return key(halves([seed])[0])
