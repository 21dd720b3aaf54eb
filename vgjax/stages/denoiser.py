"""Stage 3: a condition and the diffusion transformer learn to draw pictures."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax import build, checkpoint, conditions, losses, pipeline, weights
from vgjax.config import Config, ConfigError
from vgjax.context import Context
from vgjax.data import records
from vgjax.diffusion import guidance
from vgjax.features import latents
from vgjax.features.factors import STATISTICS
from vgjax.models import lora
from vgjax.models.autoencoder import PixelAutoencoder
from vgjax.stages.base import Batch, Loss, Stage, Terms
from vgjax.types import Inputs, Keep, Tokens
from vgjax.weights import adapters


class Denoising(Stage):
    """The stage on pictures or latents, and the columns of its condition."""

    name = "denoiser"
    rare = frozenset({"colour"})

    def __init__(self, context: Context):
        super().__init__(context)
        self.condition, self.columns = conditions.of(context.config), columns(context.config)
        self.worded = self.condition.worded
        self.weights = {"denoise": 1.0, "colour": context.config.denoiser.weight_colour}
        self._dit, self._adapter = build.dit(context.config), build.adapter(context.config)
        self._process = build.process(context.config)

    @functools.cached_property
    def frozen(self) -> dict[str, Any]:
        """What training does not move: exports of earlier stages, the condition's basis, an adapted transformer."""
        found = condition_frozen(self._context, self.condition, self.condition.needs)
        if self._config.denoiser.weight_colour:
            found["autoencoder"] = build.autoencoder(self._config)
        return found | ({"dit": load_transformer(self._config)} if self._adapter else {})

    def dit_model(self, params: Any, frozen: Any) -> build.Model:
        """The transformer: trained whole, or frozen with a trained adapter beside it."""
        if not self._adapter:
            return build.Model(self._dit, {"params": params["dit"]})
        adapter = lora.scaled(params["lora"], self._adapter.scale)
        return build.Model(self._dit, {"params": frozen["dit"], lora.COLLECTION: adapter})

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        return self.init_params(self.frozen, key), {}

    def init_params(self, frozen: Any, key: jax.Array) -> dict[str, Any]:
        """Parameters of the condition and of the transformer or its adapter."""
        keys = jax.random.split(key)
        condition, tokens = self.condition.init(keys[0], frozen)
        params = {"condition": condition}
        if self._adapter:
            return {**params, "lora": lora.init(keys[1], frozen["dit"], self._adapter, adapters.torch_module)}
        x = jnp.zeros((len(tokens.tokens_BND), *build.latent_shape(self._config)))
        return {**params, "dit": self._dit.init(keys[1], x, jnp.zeros(len(x)), tokens)["params"]}

    def latents(self, batch: Batch, key: jax.Array | None) -> jax.Array:
        """What the autoencoder makes of the pictures, (B, h, w, c); with a key, of either view of each at random."""
        if "latents" in batch:
            views_BVhwc = batch["latents"].astype(jnp.float32)
        else:
            views_BVhwc = latents.views(PixelAutoencoder(), batch["image"], self._config)
        if key is None or not self._config.denoiser.flip:
            return views_BVhwc[:, 0]
        mirrored_B = jax.random.bernoulli(jax.random.fold_in(key, 5), 0.5, (len(views_BVhwc),))
        return jnp.where(mirrored_B[:, None, None, None], views_BVhwc[:, 1], views_BVhwc[:, 0])

    def errors(self, params: Any, frozen: Any, batch: Batch, key: jax.Array, train: bool) -> jax.Array:
        """Squared error of the network's output at random times, (B,); in training, channels are dropped at random."""
        c, channels = self._config.denoiser, self.condition.channels
        drop_key, noise_key, time_key, epsilon_key = jax.random.split(key, 4)
        x_0 = self.latents(batch, key if train else None)
        inputs = self.condition.from_rows(frozen, batch, noise_key if train else None)
        keep = dict.fromkeys(channels, jnp.ones(len(x_0), bool))
        if train:
            keep = kept_channels(drop_key, c.dropout, c.dropout_all, channels, len(x_0))
        tokens = self.condition.tokens(params["condition"], frozen, inputs, keep)
        dit = self.dit_model(params, frozen)
        return pipeline.diffusion_errors(dit, self._process, x_0, tokens, time_key, epsilon_key)

    def errors_at(self, params: Any, frozen: Any, batch: Batch, t: jax.Array, noise_hwc: jax.Array) -> jax.Array:
        """The same with nothing dropped, at a process time () and a noise that all pictures meet, (B,)."""
        x_0 = self.latents(batch, None)
        keep = dict.fromkeys(self.condition.channels, jnp.ones(len(x_0), bool))
        inputs = self.condition.from_rows(frozen, batch, None)
        tokens, dit = self.condition.tokens(params["condition"], frozen, inputs, keep), self.dit_model(params, frozen)
        output = lambda x_t, t_B: pipeline.denoise(dit, self._process, x_t, t_B, tokens)
        noise = jnp.broadcast_to(noise_hwc, x_0.shape)
        return pipeline.errors_at(self._process, output, x_0, jnp.full(len(x_0), t), noise)

    def loss(self, params: Any, model_state: Any, frozen: Any, batch: Batch, key: jax.Array):
        return {"denoise": self.errors(params, frozen, batch, key, train=True)}, {}

    def loss_at(self, step: int) -> Loss:
        c = self._config.denoiser
        return self.colour_loss if c.weight_colour and step % c.colour_every_steps == 0 else self.loss

    def colour_loss(self, params: Any, model_state: Any, frozen: Any, batch: Batch, key: jax.Array):
        """The loss with one more term: how far colours of guided draws from the batch's conditions are from its own."""
        c, channels = self._config.denoiser, self.condition.channels
        weights = dict.fromkeys(channels, c.colour_guidance)
        kept = guidance.branches(weights)
        guided = guidance.Guidance(channels, kept, jnp.asarray(guidance.coefficients(kept, weights)))
        steps = c.colour_steps, c.colour_gradient_steps
        sampling = pipeline.Sampling(self._process, self._config.sample.solver, *steps)
        to_tokens = functools.partial(self.condition.tokens, params["condition"], frozen)
        inputs, x_0 = self.condition.from_rows(frozen, batch, None), self.latents(batch, None)
        noise = jax.random.normal(jax.random.fold_in(key, 6), x_0.shape)
        drawn = pipeline.generate(to_tokens, self.dit_model(params, frozen), inputs, noise, sampling, guided)
        # Against pictures as the autoencoder keeps them: what it loses is not the drawing's to mend.
        images = [pipeline.decode(frozen["autoencoder"], x) for x in (drawn, x_0)]
        terms, model_state = self.loss(params, model_state, frozen, batch, key)
        return terms | {"colour": losses.colour(*images)}, model_state

    def validate(self, params: Any, model_state: Any, frozen: Any, batch: Batch, key: jax.Array) -> Terms:
        return {"score": self.errors(params, frozen, batch, key, train=False)}

    def example(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        picture = {"latents": row["latents"]} if "latents" in row else {"image": records.from_png(row["image"])}
        return {**picture, **self.condition.example(row)}

    def pretrained(self) -> tuple[Any, Any] | None:
        return load_pretrained(self._config, self.frozen.get("dit"))


def kept_channels(
    key: jax.Array, rates: Mapping[str, float], together: float, channels: Sequence[str], batch: int
) -> dict[str, jax.Array]:
    """Which examples keep which channel, (B,) bool each: dropped by itself at its own rate, or all `together`."""
    all_key, *keys = jax.random.split(key, len(channels) + 1)
    all_kept = ~jax.random.bernoulli(all_key, together, (batch,))
    own = zip(channels, keys, strict=True)
    return {name: all_kept & ~jax.random.bernoulli(k, rates[name], (batch,)) for name, k in own}


def columns(config: Config) -> tuple[str, ...]:
    """What a training row is joined from: pictures or latents, and the condition's columns."""
    picture = "pictures" if config.autoencoder.kind == "pixel" else "latents"
    return tuple(dict.fromkeys((picture, *conditions.of(config).columns)))


def condition_frozen(context: Context, condition: conditions.Condition, needs: Sequence[str]) -> dict[str, Any]:
    """What a condition reads besides its parameters: networks, exports of stages, their scales, and its basis."""
    found = condition.frozen() | {stage: context.variables(stage) for stage in needs}
    if "prior" in needs:
        found["statistics"] = checkpoint.load_export(context.artefact("factors").path(STATISTICS))
    return found | {"basis": context.variables("condition")}


def drawing_needs(condition: conditions.Condition) -> tuple[str, ...]:
    """The stages that drawing reads."""
    return tuple(dict.fromkeys((*condition.needs, *condition.request_needs)))


class Trained:
    """A trained denoiser, its adapter merged: what draws."""

    def __init__(self, context: Context):
        config, params = context.config, context.variables("denoiser")["params"]
        self.condition = conditions.of(config)
        if adapter := build.adapter(config):
            params["dit"] = lora.merge(load_transformer(config), params["lora"], adapter.scale)
        self.dit = build.dit(config)
        # One tree, so that compiled functions take it as an argument.
        self.variables = {
            "condition": params["condition"],
            "frozen": condition_frozen(context, self.condition, drawing_needs(self.condition)),
            "dit": {"params": params["dit"]},
        }

    def to_tokens(self, variables: Any, inputs: Inputs, keep: Keep) -> Tokens:
        """The condition's tokens."""
        return self.condition.tokens(variables["condition"], variables["frozen"], inputs, keep)


# Attribute of the transformer -> the config key that decides it.
SIZE_KEYS = {
    **{name: name for name in ("width", "depth", "heads", "patch", "mlp_ratio")},
    "out_channels": "learn_sigma",
    "base_cells": "position_cells",
    "interpolation": "position_interpolation",
    "pixels_per_latent": "tell_size",
}


def load_transformer(config: Config) -> dict[str, Any]:
    """Parameters of the transformer that config key `denoiser.weights` names.

    Raises:
      ConfigError: the weights cannot be read, or are of another size than the config says.
    """
    source = config.denoiser.weights
    tensors, values = weights.load(source, "transformer")
    found, variables = weights.from_torch("pixart", tensors, values, where=source)
    wanted = build.dit(config)
    problems = [
        f"denoiser.{key} asks for {name} {getattr(wanted, name)} where the weights have {getattr(found, name)}"
        for name, key in SIZE_KEYS.items()
        if getattr(wanted, name) != getattr(found, name)
    ]
    token_width = variables["params"]["caption_1"]["kernel"].shape[0]
    if token_width != config.denoiser.token_width:
        problems.append(f"denoiser.token_width is {config.denoiser.token_width} where the weights have {token_width}")
    if problems:
        told = "; ".join(problems)
        raise ConfigError(f"config key 'denoiser.weights' names '{source}', but {told}: set these keys so")
    return variables["params"]


def load_pretrained(config: Config, transformer: Any) -> tuple[Any, Any] | None:
    """Parameters of the condition and of an adapter of `transformer`, from files named in the place of training.

    Raises:
      ConfigError: the files cannot be read, or are of other sizes than the config says.
    """
    c, adapter = config.denoiser, build.adapter(config)
    if not c.hffm_weights or adapter is None:
        return None
    condition = conditions.of(config).pretrained()
    tensors, settings = weights.load(c.lora.weights)
    if settings and adapters.adapter_from_config(settings, c.lora.weights).scale != adapter.scale:
        raise ConfigError(
            f"config key 'denoiser.lora.alpha' is {c.lora.alpha} with rank {c.lora.rank}, but '{c.lora.weights}' was"
            " trained with another scale: take rank, alpha and rank_stabilised from its adapter_config.json"
        )
    found = adapters.adapter_from_torch(tensors, transformer, c.lora.weights)
    wanted = jax.eval_shape(lambda: lora.init(jax.random.key(0), transformer, adapter, adapters.torch_module))
    if jax.tree.map(jnp.shape, found) != jax.tree.map(jnp.shape, wanted):
        raise ConfigError(
            f"config key 'denoiser.lora.weights' names '{c.lora.weights}', which adapts other layers or has another"
            " rank than denoiser.lora.targets and denoiser.lora.rank say: take both from its adapter_config.json"
        )
    return {"condition": condition, "lora": found}, {}


def check(config: Config) -> None:
    """Reads every file of weights that the stage will need; ConfigError where one cannot be used."""
    build.autoencoder(config)
    load_pretrained(config, load_transformer(config) if config.denoiser.weights else None)
