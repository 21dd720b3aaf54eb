"""Optimisers: AdamW with warm-up, built from a stage's training config."""

from __future__ import annotations

import optax

from vgjax.config import Training


def learning_rate(config: Training) -> optax.Schedule:
    """Linear warm-up, then cosine to zero or constant (a plateau's factor is applied by the training loop)."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, max(config.steps, warmup + 1))
    return optax.linear_schedule(0.0, peak, warmup) if warmup else optax.constant_schedule(peak)


def optimizer(config: Training) -> optax.GradientTransformation:
    """Gradient-norm clipping (where asked), then AdamW (Loshchilov & Hutter 2019)."""
    adam = optax.adamw(learning_rate(config), config.adam_b1, config.adam_b2, weight_decay=config.weight_decay)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adam) if config.clip_norm else adam
