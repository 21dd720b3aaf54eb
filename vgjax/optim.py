"""Optimisers: AdamW or Muon with warm-up, built from a stage's training config."""

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from vgjax.config import Training

# Updates of a matrix get the root mean square that AdamW's have, so that both take the same learning rate
# (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2).
MUON_RMS = 0.2
MUON_PARTS = {"blocks", "anatomy_encoder", "modality_encoder", "a_encoder", "m_encoder", "unet"}


def learning_rate(config: Training) -> optax.Schedule:
    """Linear warm-up, then cosine to zero or constant (a plateau's factor is applied by the training loop)."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, max(config.steps, warmup + 1))
    return optax.linear_schedule(0.0, peak, warmup) if warmup else optax.constant_schedule(peak)


def optimizer(config: Training) -> optax.GradientTransformation:
    """Gradient-norm clipping (where asked), then AdamW (Loshchilov & Hutter 2019) or Muon (Jordan et al. 2024)."""
    rate, decay = learning_rate(config), config.weight_decay
    if config.optimizer == "muon":
        step = muon(
            rate,
            weight_decay=decay,
            adam_b1=config.adam_b1,
            adam_b2=config.adam_b2,
            adam_weight_decay=decay,
            muon_weight_dimension_numbers=inner_matrices,
            consistent_rms=MUON_RMS,
        )
    else:
        step = optax.adamw(rate, config.adam_b1, config.adam_b2, weight_decay=decay)
    return optax.chain(clipping(config), step) if config.clip_norm else step


def clipping(config: Training) -> optax.GradientTransformation:
    """Clips the global norm of all gradients, or of one part of the parameters."""
    clip = optax.clip_by_global_norm(config.clip_norm)
    if not config.clip_part:
        return clip
    return optax.masked(clip, lambda params: {name: name == config.clip_part for name in params})


def inner_matrices(params: Any) -> Any:
    """Which parameters Muon orthogonalises: kernels of the blocks, the text heads, stage 1's encoders and the reader.

    The rest (ends, tables, biases), whose leaf becomes None, takes AdamW with Nesterov momentum. A block's kernel is
    (depth, in, out), a head's (in, out), and a convolution's (h, w, in, out) counts as a matrix of h * w * in rows.
    """

    def dimensions(path: tuple[Any, ...], leaf: Any) -> MuonDimensionNumbers | None:
        *parts, name = [str(getattr(entry, "key", entry)) for entry in path]
        if name != "kernel" or not MUON_PARTS.intersection(parts):
            return None
        first = int("blocks" in parts)  # the axis of the stack is none of a matrix's
        return MuonDimensionNumbers(tuple(range(first, leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(dimensions, params)
