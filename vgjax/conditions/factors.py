"""The default condition: an anatomy and a modality channel of whitened factors, from pictures, texts or masks.

Training reads the factors of the training pictures; what is asked for in words or by a mask is drawn from the
disentangler's flows, and what is asked for by a picture is read from it.
"""

import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vgjax import build, pipeline, seeds
from vgjax.conditions.base import Condition, Frozen, RowsOf, in_parts
from vgjax.config import Config, ConfigError
from vgjax.models import hffm
from vgjax.models.text_encoder import TextEncoder
from vgjax.types import CHANNELS, Factors, Inputs, Keep, Request, Tokens

DRAWN_TOGETHER = 256  # requests a call of the compiled flow
SEEN_TOGETHER = 32  # pictures a call of the compiled prior
WORDED = tuple(f"{name}_text" for name in CHANNELS)  # fields of the column "wordings"


def fusion(config: Config) -> hffm.FactorFusion:
    """What reads components."""
    c = config.denoiser
    return hffm.FactorFusion(
        *(c.hffm_hidden, c.token_width, c.width, config.prior.grid, c.spatial_path, c.style_path),
        one_channel=c.channels == "one",
    )


class TextFactors(Condition):
    """What the conditions on text regression share: the road from text embeddings to the two factors, as published."""

    channels: tuple[str, ...] = CHANNELS
    columns: tuple[str, ...] = ("text",)
    needs: tuple[str, ...] = ("disentangler",)
    keys: tuple[str, ...] = (
        *("prior.*", "-prior.train.*", "disentangler.*", "-disentangler.train.*", "text_encoder.*", "seed"),
        *("denoiser.condition", "denoiser.hffm_hidden", "denoiser.token_width", "denoiser.hffm_weights"),
    )

    _module: nn.Module

    def __init__(self, config: Config):
        self.config = config

    def example(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        return {"embedding": row["embedding"].astype(np.float32)}

    def factors(self, frozen: Frozen, embedding_BD: jax.Array) -> Factors:
        """What the regression reads from text embeddings."""
        model = build.Model(build.disentangler(self.config), frozen["disentangler"])
        return pipeline.text_factors(model, embedding_BD, self.config.prior.grid)

    def from_requests(
        self, frozen: Frozen, requests: Sequence[Request], request_seeds: Sequence[int], encode: TextEncoder
    ) -> Inputs:
        @functools.cache  # channels that share their texts are read once
        def read(texts: tuple[str, ...]) -> Inputs:
            embedding = jnp.asarray(encode(list(texts)), jnp.float32)
            return self.from_rows(frozen, dict.fromkeys(("embedding", *WORDED), embedding), None)

        asked = {channel: tuple(request.text(channel) for request in requests) for channel in CHANNELS}
        if any(request.shows_pictures for request in requests) or not all(map(all, asked.values())):
            raise ConfigError(
                f"condition '{self.config.denoiser.condition}' with disentangler.method"
                f" '{self.config.disentangler.method}' takes words and nothing else: give a prompt, and no pictures"
            )
        return {channel: read(texts)[channel] for channel, texts in asked.items()}

    def tokens(self, params: Any, frozen: Frozen, inputs: Inputs, keep: Keep) -> Tokens:
        return build.Model(self._module, {"params": params})(inputs, keep)


class FactorsCondition(TextFactors):
    """Components of anatomy and modality, (B, M) of its own M each, read by `FactorFusion` as one channel or as two."""

    fit_columns = ("factors",)
    fit_keys = ("denoiser.condition", "denoiser.components")

    request_needs = ("prior", "disentangler")
    request_keys = (*TextFactors.keys, "data.intensity", "data.image_size")

    @property
    def keys(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the prior; of a regression too, where the transformer learns from one."""
        own = ("prior.*", "-prior.train.*", "seed")  # of denoiser.* the stage declares all
        return tuple(dict.fromkeys((*TextFactors.keys, *own))) if self._learns_from_text else own

    def __init__(self, config: Config):
        super().__init__(config)
        self._draw = {name: jax.jit(functools.partial(self._sample_flow, name)) for name in CHANNELS}
        self._see = jax.jit(self._parts_of_pictures)
        self._module = fusion(config)

    @property
    def channels(self) -> tuple[str, ...]:  # type: ignore[override]
        """One or two."""
        return (hffm.ONE_CHANNEL,) if self.config.denoiser.channels == "one" else CHANNELS

    @property
    def _learns_from_text(self) -> bool:
        return self.config.denoiser.learn_from == "text"

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        """Factors, or the text that a regression makes them of."""
        return ("text",) if self._learns_from_text else ("factors",)

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """That regression."""
        return ("disentangler",) if self._learns_from_text else ()

    @property
    def takes_masks(self) -> bool:  # type: ignore[override]
        """The flow does."""
        return self.config.disentangler.method == "flow"

    def fit(self, rows: RowsOf) -> dict[str, np.ndarray]:
        """Principal components of the factors of the training pictures."""
        source = rows(self.fit_columns, "train")
        basis: dict[str, np.ndarray] = {}
        for channel in CHANNELS:
            factors_NF = np.stack([source[i][channel].ravel() for i in range(len(source))]).astype(np.float64)
            found = pipeline.principal_components(factors_NF, self.config.denoiser.components)
            basis |= {f"{channel}_{name}": value for name, value in found.items()}
        return basis

    def example(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        if self._learns_from_text:
            return super().example(row)
        return {name: row[name].astype(np.float32) for name in CHANNELS}

    def init(self, key: jax.Array, frozen: Frozen) -> tuple[Any, Tokens]:
        sizes = {name: frozen["basis"][f"{name}_whiten"].shape[1] for name in CHANNELS}
        inputs = {name: jnp.zeros((2, size)) for name, size in sizes.items()}
        keep = dict.fromkeys(self.channels, jnp.ones(2, bool))
        tokens, variables = self._module.init_with_output(key, inputs, keep, frozen["basis"])
        return variables["params"], tokens

    def from_rows(self, frozen: Frozen, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Inputs:
        """Components, in training with noise: what lies below its level cannot be told apart by the transformer.

        Drawn and measured factors then look alike to it (conditioning augmentation, Ho et al. 2021, section 4).
        """
        if "embedding" in batch:
            factors = self.factors(frozen, batch["embedding"])
        else:
            factors = Factors(anatomy_BggK=batch["anatomy"], modality_BZ=batch["modality"])
        inputs = pipeline.to_components(factors, frozen["basis"])
        if key is None:
            return inputs
        c = self.config.denoiser
        levels = {"anatomy": c.anatomy_noise, "modality": c.modality_noise}
        keys = dict(zip(CHANNELS, jax.random.split(key, len(CHANNELS)), strict=True))
        return {name: x + levels[name] * jax.random.normal(keys[name], x.shape) for name, x in inputs.items()}

    def from_requests(
        self, frozen: Frozen, requests: Sequence[Request], request_seeds: Sequence[int], encode: TextEncoder
    ) -> Inputs:
        """Components that each request implies, where it leaves a choice drawn with its seed."""
        if self.config.disentangler.method == "regression":
            return super().from_requests(frozen, requests, request_seeds, encode)
        halves_B2 = seeds.halves(list(request_seeds))
        shown = {name: {i: png for i, r in enumerate(requests) if (png := r.picture(name))} for name in CHANNELS}
        pictures = list(dict.fromkeys(png for of_one in shown.values() for png in of_one.values()))
        seen = self._measured(frozen, pictures) if pictures else {}
        places, inputs = {png: place for place, png in enumerate(pictures)}, {}
        for channel, of_one in shown.items():
            if len(of_one) < len(requests):
                inputs[channel] = self._drawn(channel, frozen, requests, halves_B2, encode)
            if of_one:
                parts = seen[channel][[places[png] for png in of_one.values()]]
                inputs.setdefault(channel, parts)[list(of_one)] = parts
        return {name: jnp.asarray(x) for name, x in inputs.items()}

    def _drawn(
        self, channel: str, frozen: Frozen, requests: Sequence[Request], halves_B2: np.ndarray, encode: TextEncoder
    ) -> np.ndarray:
        """One channel's components from texts and masks, (N, M); drawn freely where nothing is asked."""
        texts = [request.text(channel) for request in requests]
        given = {"text": np.asarray(encode(texts), np.float32)}
        keep = {"text": np.array([bool(text) for text in texts])}
        if channel == "anatomy":
            cells = build.mask_cells(self.config)
            given["mask"] = np.stack([_coverage(request.mask, cells) for request in requests])
            keep["mask"] = np.array([bool(request.mask) for request in requests])
        weight = jnp.float32(self.config.sample.text_guidance[channel])
        variables = {"params": frozen["disentangler"]["params"][channel]}
        draw = lambda columns: self._draw[channel](variables, columns, weight)
        return in_parts(draw, {"given": given, "keep": keep, "halves": halves_B2}, len(requests), DRAWN_TOGETHER)

    def _sample_flow(self, channel: str, variables: Any, columns: Any, weight: jax.Array) -> jax.Array:
        module, place = build.factor_flows(self.config)[channel], CHANNELS.index(channel)
        key_of = lambda halves: jax.random.fold_in(seeds.key(halves), place)
        noise_BM = jax.vmap(lambda halves: jax.random.normal(key_of(halves), (module.features,)))(columns["halves"])
        model = build.Model(module, variables)
        given, keep, steps = columns["given"], columns["keep"], self.config.sample.text_steps
        return pipeline.draw_factors(model, given, keep, noise_BM, weight, steps)

    def _measured(self, frozen: Frozen, pictures: Sequence[bytes]) -> dict[str, np.ndarray]:
        """Components of pictures (PNG, of data.image_size)."""
        images = np.stack([np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in pictures])
        read = {name: frozen[name] for name in ("prior", "statistics", "basis")}
        return in_parts(functools.partial(self._see, read), images, len(images), SEEN_TOGETHER)

    def _parts_of_pictures(self, frozen: Frozen, image_BHWC: jax.Array) -> Inputs:
        c, prior = self.config, build.Model(build.prior(self.config), frozen["prior"])
        seen = pipeline.prior_input(image_BHWC, build.prior_size(c), c.data.intensity)
        return pipeline.to_components(pipeline.image_factors(prior, frozen["statistics"], seen), frozen["basis"])

    def tokens(self, params: Any, frozen: Frozen, inputs: Inputs, keep: Keep) -> Tokens:
        return build.Model(self._module, {"params": params})(inputs, keep, frozen["basis"])


def _coverage(mask: bytes, cells: int) -> np.ndarray:
    """A mask's coverage (cells * cells,), zero for none."""
    if not mask:
        return np.zeros(cells * cells, np.float32)
    pixels = np.asarray(Image.open(io.BytesIO(mask)).convert("L")) > 0
    return np.asarray(pipeline.mask_coverage(jnp.asarray(pixels[None]), cells)[0])
