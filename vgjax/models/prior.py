"""The default visual prior: the SDNet's four parts, with channels that keep out of each other's way by construction.

Differences from the published network (`vgjax.models.sdnet`) and why:
  anatomy   sees each picture standardised per colour channel, so cast, brightness and contrast are gone before the
            first layer; group norm instead of batch norm, so one picture's factors do not depend on its batch.
  modality  pools features over lesion, background and boundary separately, each normalised by its area (as region-wise
            style does in Zhu et al. 2020, "SEAN"), so neither size nor position has a way in; no norm, so absolute
            brightness stays.
  structure the segmentor's lesion probability leaves stage 1 as one more anatomy factor: where the lesion is, is what
            text says most about, and K unsupervised maps need not hold it apart.
  decoder   per-channel AdaIN whose scale and shift are linear in z (Huang & Belongie 2017, eq. 8), and a fixed noise
            map, without which a deterministic decoder has nothing to make texture from.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vgjax import losses
from vgjax.models.appearance import regions, statistics
from vgjax.models.layers import max_pool_2x2, straight_through_gumbel_softmax, upsample_nearest
from vgjax.models.sdnet import PriorOutput

Restyle = Callable[[jax.Array, jax.Array], jax.Array]


def _conv_block(x: jax.Array, width: int, name: str) -> jax.Array:
    for i in (1, 2):
        x = nn.Conv(width, (3, 3), name=f"{name}_conv{i}")(x)
        x = nn.silu(nn.GroupNorm(num_groups=min(8, width), name=f"{name}_norm{i}")(x))
    return x


class AnatomyEncoder(nn.Module):
    """U-Net from a picture to K anatomy logits a pixel."""

    widths: Sequence[int]
    factors: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        mean = x_BHWC.mean(axis=(1, 2), keepdims=True)
        x = (x_BHWC - mean) / (x_BHWC.std(axis=(1, 2), keepdims=True) + 1e-2)
        skips = []
        for i, width in enumerate(self.widths):
            x = _conv_block(x, width, f"down{i}")
            skips.append(x)
            x = max_pool_2x2(x)
        x = _conv_block(x, 2 * self.widths[-1], "bottleneck")
        for i, width in reversed(list(enumerate(self.widths))):
            x = nn.Conv(width, (3, 3), name=f"up{i}")(upsample_nearest(x))
            x = _conv_block(jnp.concatenate([x, skips[i]], axis=-1), width, f"merge{i}")
        return nn.Conv(self.factors, (3, 3), name="logits")(x)  # (B, H, W, K)


class ModalityEncoder(nn.Module):
    """Region-wise statistics of convolutional features -> mu, logvar (B, Z)."""

    widths: Sequence[int]
    factors: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, lesion_BHW: jax.Array) -> tuple[jax.Array, jax.Array]:
        weights_BHWR = regions(lesion_BHW)
        pooled, x = [], x_BHWC
        for i, width in enumerate(self.widths):
            x = nn.silu(nn.Conv(width, (3, 3), name=f"conv{i}")(x))
            mean_BRC = jnp.einsum("bhwr,bhwc->brc", weights_BHWR, x)
            square_BRC = jnp.einsum("bhwr,bhwc->brc", weights_BHWR, x * x)
            spread = jnp.log(jnp.maximum(square_BRC - mean_BRC**2, 0.0) + 1e-4)
            pooled += [mean_BRC.reshape(len(x), -1), 0.3 * spread.reshape(len(x), -1)]
        h = nn.silu(nn.Dense(64, name="hidden")(jnp.concatenate(pooled, axis=-1)))
        return nn.Dense(self.factors, name="mu")(h), nn.Dense(self.factors, name="logvar")(h)


class Segmentor(nn.Module):
    """Anatomy map -> logits of background and lesion (B, H, W, 2)."""

    width: int

    @nn.compact
    def __call__(self, anatomy_BHWK: jax.Array) -> jax.Array:
        return nn.Conv(2, (1, 1), name="logits")(_conv_block(anatomy_BHWK, self.width, "block"))


class Decoder(nn.Module):
    """Anatomy map and modality vector -> picture in [-1, 1]."""

    widths: Sequence[int]

    @nn.compact
    def __call__(self, anatomy_BHWK: jax.Array, z_BZ: jax.Array) -> jax.Array:
        batch, height, width = anatomy_BHWK.shape[:3]
        noise = np.random.default_rng(0).standard_normal((1, height, width, 2)).astype(np.float32)
        x = jnp.concatenate([anatomy_BHWK, jnp.broadcast_to(noise, (batch, height, width, 2))], axis=-1)
        for i, features in enumerate(self.widths):
            x = nn.Conv(features, (3, 3), name=f"conv{i}")(x)
            x = (x - x.mean(axis=(1, 2), keepdims=True)) / (x.std(axis=(1, 2), keepdims=True) + 1e-2)
            scale, shift = jnp.split(nn.Dense(2 * features, name=f"style{i}")(z_BZ)[:, None, None], 2, axis=-1)
            x = nn.silu(x * (1 + scale) + shift)
        return nn.tanh(nn.Conv(3, (3, 3), name="out")(x))


class VisualPrior(nn.Module):
    """Anatomy encoder, modality encoder, segmentor, decoder and the head that reads appearance back from mu."""

    widths: Sequence[int]
    modality_widths: Sequence[int]
    segmentor_width: int
    decoder_widths: Sequence[int]
    anatomy_factors: int
    modality_factors: int
    appearance: int  # how many statistics `vgjax.models.appearance.statistics` returns

    def setup(self) -> None:
        self.a_encoder = AnatomyEncoder(self.widths, self.anatomy_factors)
        self.m_encoder = ModalityEncoder(self.modality_widths, self.modality_factors)
        self.segmentor = Segmentor(self.segmentor_width)
        self.decoder = Decoder(self.decoder_widths)
        self.appearance_head = nn.Sequential([nn.Dense(64), nn.silu, nn.Dense(self.appearance)])

    @property
    def structure_channels(self) -> int:
        """Maps that leave stage 1 as anatomy: the factors', and the lesion's probability."""
        return self.anatomy_factors + 1

    def __call__(self, x_BHWC: jax.Array) -> PriorOutput:
        """Takes a picture apart and puts it together again, without noise: z = mu."""
        return self._rebuild(x_BHWC, straight_through_gumbel_softmax(self.a_encoder(x_BHWC)), 0.0)

    def noisy_pass(
        self, x_BHWC: jax.Array, lesion_BHW: jax.Array, key: jax.Array, restyle: Restyle
    ) -> tuple[PriorOutput, dict[str, jax.Array]]:
        """The training pass with noise drawn from `key`: the map may not depend on imaging style, mu has to tell it.

        The anatomy is read from a restyled copy, whose imaging style is of no use to rebuild x.

        Args:
          x_BHWC: pictures in [-1, 1].
          lesion_BHW: their masks, 0 or 1.
          restyle: (key, pictures) -> the same geometry in another imaging style.

        Returns:
          The output, and two more terms of the loss, (B,).
        """
        keys = jax.random.split(key, 3)
        gumbel = jax.random.gumbel(keys[0], (*x_BHWC.shape[:3], self.anatomy_factors))
        eps = jax.random.normal(keys[1], (len(x_BHWC), self.modality_factors))
        both = self.a_encoder(jnp.concatenate([restyle(keys[2], x_BHWC), x_BHWC]))
        restyled, plain = jnp.split(both, 2)
        output = self._rebuild(x_BHWC, straight_through_gumbel_softmax(restyled, gumbel), eps)
        return output, {
            "consistency": jnp.square(nn.softmax(plain) - nn.softmax(restyled)).sum(-1).mean((1, 2)),
            "appearance": losses.mse(self.appearance_head(output.mu_BZ), statistics(x_BHWC, lesion_BHW)),
        }

    def _rebuild(self, x_BHWC: jax.Array, anatomy_BHWK: jax.Array, eps_BZ: jax.Array | float) -> PriorOutput:
        segmentation = nn.softmax(self.segmentor(anatomy_BHWK))
        mu, logvar = self.m_encoder(x_BHWC, segmentation[..., 1])
        z = mu + eps_BZ * jnp.exp(0.5 * logvar)
        reconstruction = self.decoder(anatomy_BHWK, z)
        # The map is kept for the second reading: the default asks the modality alone to survive the round trip.
        mu_tilde, _ = self.m_encoder(reconstruction, segmentation[..., 1])
        if self.is_initializing():
            self.appearance_head(mu)
        return PriorOutput(
            anatomy_BHWK=anatomy_BHWK,
            segmentation_BHWS=segmentation,
            mu_BZ=mu,
            logvar_BZ=logvar,
            z_BZ=z,
            reconstruction_BHWC=reconstruction,
            anatomy_tilde_BHWK=anatomy_BHWK,
            mu_tilde_BZ=mu_tilde,
            structure_BHWF=jnp.concatenate([anatomy_BHWK, segmentation[..., 1:]], axis=-1),
        )
