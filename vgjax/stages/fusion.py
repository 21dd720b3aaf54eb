"""Stage 3: HFFM and diffusion transformer learn to draw pictures from the factors that text implies."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax import checkpoint, losses, pipeline
from vgjax.config import Config
from vgjax.data import records
from vgjax.models.autoencoder import make_autoencoder
from vgjax.stages import text
from vgjax.stages.stage import Run, Stage, Terms
from vgjax.types import Factors

# A feature of the factors (a grid cell of a map, say) joins in if text predicts it on validation pictures at all.
FEATURE_SIGMAS = 2.0
# A direction passes only if text predicts it on validation pictures: correlation above this many standard errors.
GATE_SIGMAS = 3.0


class Denoising:
    """The stage's functions: pictures and text embeddings to denoising errors, by way of the pipeline."""

    def __init__(self, config: Config):
        self.config = config
        self.hffm, self.dit = pipeline.make_hffm(config), pipeline.make_dit(config)
        self.disentangler = pipeline.make_disentangler(config)
        self.process, self.autoencoder = pipeline.make_process(config), make_autoencoder(config.autoencoder)

    def factors(self, frozen: Any, embedding_BD: jax.Array) -> Factors:
        """What stage 2 reads from text embeddings."""
        model = pipeline.Model(self.disentangler, frozen["text"])
        return pipeline.text_factors(model, embedding_BD, self.config.prior.grid)

    def hffm_model(self, params: Any, frozen: Any) -> pipeline.Model:
        """The fusion module with its fixed basis, where it has one."""
        basis = {"basis": frozen["basis"]} if frozen["basis"] else {}
        return pipeline.Model(self.hffm, {"params": params["hffm"], **basis})

    def init(self, frozen: Any, key: jax.Array) -> dict[str, Any]:
        """Parameters of HFFM and transformer."""
        keys = jax.random.split(key)
        factors = self.factors(frozen, jnp.zeros((2, self.config.text_encoder.width)))
        params = {"hffm": self.hffm.init(keys[0], factors, (jnp.ones(2, bool),) * 2)["params"]}
        tokens = pipeline.condition_tokens(self.hffm_model(params, frozen), factors)
        side = self.config.data.image_size // self.autoencoder.factor
        x = jnp.zeros((2, side, side, self.autoencoder.channels))
        return {**params, "dit": self.dit.init(keys[1], x, jnp.zeros(2), tokens)["params"]}

    def errors(self, params: Any, frozen: Any, batch: dict[str, jax.Array], key: jax.Array, train: bool) -> jax.Array:
        """Squared error of the network's output at random times, (B,)."""
        c, keys = self.config.fusion, jax.random.split(key, 5)
        image = pipeline.to_unit_range(batch["image"], self.config.data.intensity)
        latents, size = self.autoencoder.encode(image), len(image)
        keep, noise_key = None, None
        if train:
            kept = [~jax.random.bernoulli(k, c.condition_dropout, (size,)) for k in keys[:2]]
            keep, noise_key = (kept[0], kept[1]), keys[2]
        hffm = self.hffm_model(params, frozen)
        tokens = pipeline.condition_tokens(
            hffm, self.factors(frozen, batch["embedding"]), keep, noise_key, c.condition_noise
        )
        t, noise = self.process.draw_time(keys[3], size), jax.random.normal(keys[4], latents.shape)
        model = pipeline.Model(self.dit, {"params": params["dit"]})
        output = pipeline.denoise(model, self.process, self.process.add_noise(latents, noise, t), t, tokens)
        return losses.mse(output, self.process.target(latents, noise, t))


def make(run: Run) -> Stage:
    """The stage on this run's pictures and text embeddings, with stage 2 frozen."""
    config = run.config
    functions, stage_two = Denoising(config), checkpoint.load_export(run.export("text"))
    basis = fit_basis(run, stage_two) if config.fusion.hffm_variant == "default" else {}
    frozen = {"text": stage_two, "basis": basis}

    def loss(params: Any, model_state: Any, frozen: Any, batch: dict[str, jax.Array], key: jax.Array):
        return {"denoise": functions.errors(params, frozen, batch, key, train=True)}, {}

    def validate(params: Any, model_state: Any, frozen: Any, batch: dict[str, jax.Array]) -> Terms:
        return {"score": functions.errors(params, frozen, batch, jax.random.key(0), train=False)}

    def to_example(row: dict[str, Any]) -> dict[str, np.ndarray]:
        return {"image": records.from_png(row["image"]), "embedding": row["embedding"].astype(np.float32)}

    def source(split: str) -> records.ZippedRecords:
        return records.ZippedRecords([run.records(kind, split) for kind in ("images", "text")], ("image", "embedding"))

    return Stage(
        name="fusion",
        training=config.fusion.train,
        init=lambda key: (functions.init(frozen, key), {}),
        loss=loss,
        weights={"denoise": 1.0},
        validate=validate,
        keep_best=False,
        frozen=frozen,
        source=source,
        to_example=to_example,
        finish=lambda params, model_state: {"params": params, "basis": basis},
    )


def load_models(run: Run) -> tuple[pipeline.Model, pipeline.Model]:
    """HFFM and transformer as trained."""
    variables = checkpoint.load_export(run.export("fusion"))
    params = variables.pop("params")
    basis = {"basis": variables["basis"]} if variables.get("basis") else {}
    hffm = pipeline.Model(pipeline.make_hffm(run.config), {"params": params["hffm"], **basis})
    return hffm, pipeline.Model(pipeline.make_dit(run.config), {"params": params["dit"]})


def fit_basis(run: Run, stage_two: Any) -> dict[str, np.ndarray]:
    """Mean and whitening of the text-predictable part of each channel (see `FactorFusion`)."""
    model = pipeline.Model(pipeline.make_disentangler(run.config), stage_two)
    predict = jax.jit(lambda e: model.module.apply(model.variables, e, train=False)[:2])
    rows = {split: text.make(run).source(split) for split in ("train", "validation")}
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
            predictions[0], predictions[1], data["validation"][channel], run.config.fusion.components
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
