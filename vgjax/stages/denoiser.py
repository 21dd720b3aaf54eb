"""Stage 3: HFFM and diffusion transformer learn to draw pictures from the factors that text implies."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax import checkpoint, losses, pipeline, weights
from vgjax.config import Config, ConfigError
from vgjax.data import records
from vgjax.models import lora
from vgjax.models.autoencoder import PixelAutoencoder
from vgjax.stages import disentangler, latents
from vgjax.stages.stage import Run, Stage, Terms
from vgjax.types import Factors
from vgjax.weights import adapters

# A feature of the factors (a grid cell of a map, say) joins in if text predicts it on validation pictures at all.
FEATURE_SIGMAS = 2.0
# A direction passes only if text predicts it on validation pictures: correlation above this many standard errors.
GATE_SIGMAS = 3.0


class Denoising:
    """The stage's functions: pictures and text embeddings to denoising errors, by way of the pipeline."""

    def __init__(self, config: Config):
        self.config = config
        self.hffm, self.dit = pipeline.make_hffm(config), pipeline.make_dit(config)
        self.adapter = pipeline.make_adapter(config)
        self.disentangler = pipeline.make_disentangler(config)
        self.process = pipeline.make_process(config)

    def factors(self, frozen: Any, embedding_BD: jax.Array) -> Factors:
        """What stage 2 reads from text embeddings."""
        model = pipeline.Model(self.disentangler, frozen["disentangler"])
        return pipeline.text_factors(model, embedding_BD, self.config.prior.grid)

    def hffm_model(self, params: Any, frozen: Any) -> pipeline.Model:
        """The fusion module with its fixed basis, where it has one."""
        basis = {"basis": frozen["basis"]} if frozen["basis"] else {}
        return pipeline.Model(self.hffm, {"params": params["hffm"], **basis})

    def dit_model(self, params: Any, frozen: Any) -> pipeline.Model:
        """The transformer: trained whole, or frozen with a trained adapter beside it."""
        if not self.adapter:
            return pipeline.Model(self.dit, {"params": params["dit"]})
        adapter = lora.scaled(params["lora"], self.adapter.scale)
        return pipeline.Model(self.dit, {"params": frozen["dit"], lora.COLLECTION: adapter})

    def init(self, frozen: Any, key: jax.Array) -> dict[str, Any]:
        """Parameters of HFFM and of the transformer or its adapter."""
        keys = jax.random.split(key)
        factors = self.factors(frozen, jnp.zeros((2, self.config.text_encoder.width)))
        params = {"hffm": self.hffm.init(keys[0], factors, (jnp.ones(2, bool),) * 2)["params"]}
        if self.adapter:
            return {**params, "lora": lora.init(keys[1], frozen["dit"], self.adapter, adapters.torch_module)}
        tokens = pipeline.condition_tokens(self.hffm_model(params, frozen), factors)
        x = jnp.zeros((2, *pipeline.latent_shape(self.config)))
        return {**params, "dit": self.dit.init(keys[1], x, jnp.zeros(2), tokens)["params"]}

    def latents(self, batch: dict[str, jax.Array], key: jax.Array | None) -> jax.Array:
        """What the autoencoder makes of the pictures, (B, h, w, c); with a key, of either view of each at random."""
        if "latents" in batch:
            views_BVhwc = batch["latents"].astype(jnp.float32)
        else:
            views_BVhwc = latents.views(PixelAutoencoder(), batch["image"], self.config)
        if key is None or not self.config.denoiser.flip:
            return views_BVhwc[:, 0]
        mirrored_B = jax.random.bernoulli(jax.random.fold_in(key, 5), 0.5, (len(views_BVhwc),))
        return jnp.where(mirrored_B[:, None, None, None], views_BVhwc[:, 1], views_BVhwc[:, 0])

    def errors(self, params: Any, frozen: Any, batch: dict[str, jax.Array], key: jax.Array, train: bool) -> jax.Array:
        """Squared error of the network's output at random times, (B,)."""
        c, keys = self.config.denoiser, jax.random.split(key, 5)
        x_0, size = self.latents(batch, key if train else None), len(batch["embedding"])
        keep, noise_key = None, None
        if train:
            kept = [~jax.random.bernoulli(k, c.condition_dropout, (size,)) for k in keys[:2]]
            keep, noise_key = (kept[0], kept[1]), keys[2]
        hffm = self.hffm_model(params, frozen)
        tokens = pipeline.condition_tokens(
            hffm, self.factors(frozen, batch["embedding"]), keep, noise_key, c.condition_noise
        )
        t, noise = self.process.draw_time(keys[3], size), jax.random.normal(keys[4], x_0.shape)
        x_t = self.process.add_noise(x_0, noise, t)
        output = pipeline.denoise(self.dit_model(params, frozen), self.process, x_t, t, tokens)
        return losses.mse(output, self.process.target(x_0, noise, t))


def make(run: Run) -> Stage:
    """The stage on this run's pictures and text embeddings, with stage 2 frozen."""
    config = run.config
    functions, stage_two = Denoising(config), checkpoint.load_export(run.export("disentangler"))
    basis = fit_basis(run, stage_two) if config.denoiser.hffm_variant == "default" else {}
    frozen = {"disentangler": stage_two, "basis": basis}
    if functions.adapter:
        frozen["dit"] = load_transformer(config)
    pretrained = load_pretrained(config, frozen.get("dit"))

    def loss(params: Any, model_state: Any, frozen: Any, batch: dict[str, jax.Array], key: jax.Array):
        return {"denoise": functions.errors(params, frozen, batch, key, train=True)}, {}

    def validate(params: Any, model_state: Any, frozen: Any, batch: dict[str, jax.Array]) -> Terms:
        return {"score": functions.errors(params, frozen, batch, jax.random.key(0), train=False)}

    def to_example(row: dict[str, Any]) -> dict[str, np.ndarray]:
        picture = {"image": records.from_png(row["image"])} if "image" in row else {"latents": row["latents"]}
        return {**picture, "embedding": row["embedding"].astype(np.float32)}

    def source(split: str) -> records.Rows:
        kind, field = ("images", "image") if config.autoencoder.kind == "pixel" else ("latents", "latents")
        return run.rows([kind, "text"], split, [field, "embedding"])

    return Stage(
        name="denoiser",
        training=config.denoiser.train,
        init=lambda key: (functions.init(frozen, key), {}),
        loss=loss,
        weights={"denoise": 1.0},
        validate=validate,
        keep_best=False,
        frozen=frozen,
        source=source,
        to_example=to_example,
        finish=lambda params, model_state: {"params": params, "basis": basis},
        pretrained=(pretrained, {}) if pretrained else None,
    )


def load_models(run: Run) -> tuple[pipeline.Model, pipeline.Model]:
    """HFFM and transformer as trained."""
    variables = checkpoint.load_export(run.export("denoiser"))
    params = variables.pop("params")
    basis = {"basis": variables["basis"]} if variables.get("basis") else {}
    hffm = pipeline.Model(pipeline.make_hffm(run.config), {"params": params["hffm"], **basis})
    if adapter := pipeline.make_adapter(run.config):
        params["dit"] = lora.merge(load_transformer(run.config), params["lora"], adapter.scale)
    return hffm, pipeline.Model(pipeline.make_dit(run.config), {"params": params["dit"]})


# Attribute of the transformer -> the config key that decides it.
SIZE_KEYS = {
    "width": "width",
    "depth": "depth",
    "heads": "heads",
    "patch": "patch",
    "mlp_ratio": "mlp_ratio",
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
    wanted = pipeline.make_dit(config)
    problems = [
        f"denoiser.{key} asks for {name} {getattr(wanted, name)} where the weights have {getattr(found, name)}"
        for name, key in SIZE_KEYS.items()
        if getattr(wanted, name) != getattr(found, name)
    ]
    token_width = variables["params"]["caption_1"]["kernel"].shape[0]
    if token_width != config.denoiser.token_width:
        problems.append(f"denoiser.token_width is {config.denoiser.token_width} where the weights have {token_width}")
    if problems:
        raise ConfigError(
            f"config key 'denoiser.weights' names '{source}', but {'; '.join(problems)}: set these keys so"
        )
    return variables["params"]


def load_pretrained(config: Config, transformer: Any) -> dict[str, Any] | None:
    """Parameters of HFFM and adapter from the files that the config names in the place of training.

    Args:
      transformer: parameters of the transformer that the adapter is for.

    Raises:
      ConfigError: the files cannot be read, or are of other sizes than the config says.
    """
    c, adapter = config.denoiser, pipeline.make_adapter(config)
    if not c.hffm_weights or adapter is None:
        return None
    factors = Factors(
        anatomy_BggK=jnp.zeros((1, config.prior.grid, config.prior.grid, pipeline.anatomy_channels(config))),
        modality_BZ=jnp.zeros((1, config.prior.modality_factors)),
    )
    inputs = (factors, (jnp.ones(1, bool),) * 2)
    hffm = weights.into(pipeline.make_hffm(config), inputs, "hffm", c.hffm_weights, "denoiser.hffm_weights")
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
    return {"hffm": hffm["params"], "lora": found}


def check(config: Config) -> None:
    """Reads every file of weights that the stage will need; ConfigError where one cannot be used."""
    pipeline.load_autoencoder(config)
    load_pretrained(config, load_transformer(config) if config.denoiser.weights else None)


def fit_basis(run: Run, stage_two: Any) -> dict[str, np.ndarray]:
    """Mean and whitening of the text-predictable part of each channel (see `FactorFusion`)."""
    model = pipeline.Model(pipeline.make_disentangler(run.config), stage_two)
    predict = jax.jit(lambda e: model.module.apply(model.variables, e, train=False)[:2])
    rows = {split: disentangler.make(run).source(split) for split in ("train", "validation")}
    data = {
        split: {
            name: np.stack([source[i][name].ravel() for i in range(len(source))]).astype(np.float32)
            for name in ("embedding", "anatomy", "modality")
        }
        for split, source in rows.items()
    }
    told = {split: predict(fields["embedding"]) for split, fields in data.items()}
    basis: dict[str, np.ndarray] = {}
    for i, channel in enumerate(("anatomy", "modality")):
        predictions = [np.asarray(told[split][i], np.float64) for split in ("train", "validation")]
        mean, whiten, back = whitening(
            predictions[0], predictions[1], data["validation"][channel], run.config.denoiser.components
        )
        basis |= {f"{channel}_mean": mean, f"{channel}_whiten": whiten, f"{channel}_back": back}
    return basis


def whitening(
    train_NF: np.ndarray, validation_NF: np.ndarray, truth_NF: np.ndarray, components: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Principal directions of what text predicts, at unit variance; directions that chance could explain are closed.

    Args:
      train_NF: predictions from training captions.
      validation_NF: predictions from validation captions.
      truth_NF: the validation pictures' factors.
      components: how many directions to keep (M).

    Returns:
      mean (F,), whiten (F, M), back (M, F): parts = (x - mean) @ whiten, x ~ mean + parts @ back.
    """
    mean = train_NF.mean(0)
    # Where text knows nothing, predictions are chance fits; left in, their variance would make up the directions.
    heard = _correlation(validation_NF, truth_NF) > FEATURE_SIGMAS / np.sqrt(len(truth_NF))
    variances, directions = np.linalg.eigh(np.cov((train_NF - mean) * heard, rowvar=False))
    order = np.argsort(variances)[::-1][:components]
    variances, directions = variances[order], directions[:, order]
    signs = np.sign(directions[np.abs(directions).argmax(0), np.arange(directions.shape[1])])
    directions = directions * signs  # eigenvectors are defined up to sign; fix it, so that reruns agree
    said, seen = (validation_NF - mean) @ directions, (truth_NF - mean) @ directions
    is_open = (_correlation(said, seen) > GATE_SIGMAS / np.sqrt(len(said))) & (variances > 1e-8)
    scale = np.sqrt(np.maximum(variances, 1e-12))
    whiten, back = directions / scale * is_open, (directions * scale * is_open).T
    pad = components - whiten.shape[1]
    whiten, back = np.pad(whiten, ((0, 0), (0, pad))), np.pad(back, ((0, pad), (0, 0)))
    return mean.astype(np.float32), whiten.astype(np.float32), back.astype(np.float32)


def _correlation(a_NF: np.ndarray, b_NF: np.ndarray) -> np.ndarray:
    """Pearson correlation of each column, (F,)."""
    a, b = a_NF - a_NF.mean(0), b_NF - b_NF.mean(0)
    return (a * b).mean(0) / np.maximum(a.std(0) * b.std(0), 1e-12)
