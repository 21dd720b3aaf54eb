"""What a run cannot do without, counted from shapes before any work: memory, and room on the disk.

Lower bounds: what they refuse cannot fit; what they let pass may still not.
"""

import math
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vgjax import build, stages, state
from vgjax.atomic import nearest
from vgjax.config import ConfigError
from vgjax.context import Run
from vgjax.provenance import memory_bytes
from vgjax.stages.base import StageSpec
from vgjax.types import Tokens

PACKED = 100  # times that compression may make pictures smaller
FLOAT = 4  # bytes


def check(run: Run, counts: Mapping[str, int]) -> None:
    """Compares what is not made yet with what there is; `counts` are the pictures by split, as far as they are known.

    Raises:
      ConfigError: memory or disk cannot hold it; with the numbers.
    """
    place = nearest(run.store.root)
    begun = sum(file.stat().st_size for file in run.store.root.glob("*.part/**/*") if file.is_file())  # to write over
    room, memory = shutil.disk_usage(place).free + begun, memory_bytes()
    words = lambda count: f"{count / 1e9:.3g} GB" if count < 10**15 else "over a million GB"
    wanted = [(_memory(run), memory, "memory"), (_disk(run, counts), room, f"disk at {place}")]
    for what, need, there, of in ((*one, there, of) for needs, there, of in wanted for one in needs):
        if need > there:
            raise ConfigError(f"{what}: this needs {words(need)} of {of} and there are {words(there)}: lower it")


def _memory(run: Run) -> Iterator[tuple[str, int]]:
    """What stands in memory at once, cheapest to tell first."""
    c, pixels = run.config, run.config.data.image_size**2
    taken = [name for name in ("prior", "disentangler") if getattr(c, name).weights]  # as they are, without training
    missing = [stage for stage in stages.plan(c) if stage.name not in taken and not run.find(stage.name)]
    tokens = (build.latent_shape(c)[0] // c.denoiser.patch) ** 2
    # What gradients need of each layer at the least: the inputs of its matrices, and no more than one where recomputed.
    block = c.denoiser.width * (1 if c.denoiser.remat else 6 + c.denoiser.mlp_ratio) + c.denoiser.heads * tokens
    activations = {
        "prior": 3 * pixels + build.prior_size(c) ** 2 * 4 * (2 * c.prior.widths[0] + c.prior.segmentor_width),
        "disentangler": c.text_encoder.width,
        "denoiser": 3 * pixels + tokens * c.denoiser.depth * block,
    }
    counts = {f"{stage.name}.train.batch_size": activations[stage.name] for stage in missing}
    counts |= {"sample.batch_size": 3 * pixels, "evaluate.resamples": 2, "diffusion.timesteps": 2}
    for key, each in counts.items():
        count, group = c.flat()[key], key.partition(".")[0]
        yield f"config key '{key}' is {count}, with these sizes of '{group}' and pictures", int(count * FLOAT * each)
    for stage in missing:
        leaves = jax.tree.leaves(_state(run, stage))
        need = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
        yield f"the sizes in config group '{stage.name}'", need


def _state(run: Run, stage: StageSpec) -> Any:
    """Shapes of parameters and the optimiser's state; of the denoiser, of its transformer and part of its condition."""
    c, trained = run.config, getattr(run.config, stage.name).train

    def denoiser(key: jax.Array) -> tuple[Any, Any]:
        x, tokens = jnp.zeros((2, *build.latent_shape(c))), jnp.zeros((2, 2, c.denoiser.token_width))
        made = build.dit(c).init(key, x, jnp.zeros(2), Tokens(tokens, jnp.ones((2, 2))))
        return {"dit": made, "fusion": jnp.zeros((c.denoiser.hffm_hidden, c.denoiser.token_width))}, {}

    def create(key: jax.Array) -> Any:
        params, model_state = denoiser(key) if stage.name == "denoiser" else stage.make(run.context).init(key)
        adapted = stage.name == "denoiser" and c.denoiser.weights  # an adapter's own state is small
        return params if adapted else state.create(params, model_state, optax.adam(1.0), trained.ema_decay)

    return jax.eval_shape(create, jax.random.key(0))


def _disk(run: Run, counts: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """What is written of pictures: they themselves, their latents."""
    c, learned = run.config, counts.get("train", 0) + counts.get("validation", 0)
    if not run.find("pictures"):
        count, side = sum(counts.values()), c.data.image_size
        yield f"{count} pictures of config key 'data.image_size' {side}", count * 3 * side**2 // PACKED
    if "latents" in run.producers and not run.find("latents"):
        yield f"latents of {learned} pictures", learned * math.prod(build.latent_shape(c))
