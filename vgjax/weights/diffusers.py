"""Names of diffusers' PixArt transformer (`PixArtTransformer2DModel`)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from vgjax.models.dit import DiT
from vgjax.types import Tokens
from vgjax.weights.convert import Network, Sizes, Table, Tensors, WeightsError

HEAD_WIDTH = 72  # of every published PixArt-alpha; used where no config.json says
LATENT_SIZES = {False: 64, True: 128}  # of the published networks without and with micro-conditions
PIXELS_PER_LATENT = 8


def _pixart(sizes: Sizes, config: Mapping[str, Any]) -> tuple[DiT, tuple[Any, ...]]:
    width, channels, patch, _ = sizes("pos_embed.proj.weight")
    heads = config.get("num_attention_heads") or width // HEAD_WIDTH
    if heads < 1 or width % heads:
        raise WeightsError(f"the transformer's width {width} does not divide by {heads} heads: give its config.json")
    told_sizes = sizes.has("adaln_single.emb.resolution_embedder.linear_1.weight")
    latent_size = config.get("sample_size") or LATENT_SIZES[told_sizes]
    module = DiT(
        width=width,
        depth=sizes.count(r"transformer_blocks\.(\d+)\."),
        heads=heads,
        patch=patch,
        out_channels=sizes("proj_out.bias")[0] // patch**2,
        mlp_ratio=sizes("transformer_blocks.0.ff.net.0.proj.bias")[0] / width,
        base_cells=latent_size // patch,
        interpolation=config.get("interpolation_scale") or max(latent_size // 64, 1),
        pixels_per_latent=PIXELS_PER_LATENT if told_sizes else 0,
    )
    token_width = sizes("caption_projection.linear_1.weight")[1]
    tokens = Tokens(tokens_BND=jnp.zeros((1, 2, token_width)), mask_BN=jnp.ones((1, 2)))
    return module, (jnp.zeros((1, latent_size, latent_size, channels)), jnp.zeros(1), tokens)


def config_of(module: DiT, tensors: Tensors, latent_size: int) -> dict[str, Any]:
    """The config.json that diffusers wants beside a transformer's tensors.

    Args:
      latent_size: side of the latents that it was trained on; where the module's positions were made for another size,
        that one is written.
    """
    weight = tensors["pos_embed.proj.weight"]
    return {
        "_class_name": "PixArtTransformer2DModel",
        "num_attention_heads": module.heads,
        "attention_head_dim": module.width // module.heads,
        "in_channels": weight.shape[1],
        "out_channels": module.out_channels,
        "num_layers": module.depth,
        "cross_attention_dim": module.width,
        "caption_channels": tensors["caption_projection.linear_1.weight"].shape[1],
        "patch_size": module.patch,
        "sample_size": module.base_cells * module.patch or latent_size,
        "interpolation_scale": module.interpolation,
        "use_additional_conditions": bool(module.pixels_per_latent),
        "norm_type": "ada_norm_single",
    }


PIXART = Network(
    Table(
        rows=(
            (r"pos_embed_proj", r"pos_embed.proj"),
            (r"linear_(\d)", r"adaln_single.emb.timestep_embedder.linear_\1"),
            (r"(resolution|aspect_ratio)_(\d)", r"adaln_single.emb.\1_embedder.linear_\2"),
            (r"adaln", r"adaln_single.linear"),
            (r"caption_(\d)", r"caption_projection.linear_\1"),
            (r"blocks/(attn\d)/(to_[qkv])", r"transformer_blocks.{layer}.\1.\2"),
            (r"blocks/(attn\d)/to_out", r"transformer_blocks.{layer}.\1.to_out.0"),
            (r"blocks/ff_in", r"transformer_blocks.{layer}.ff.net.0.proj"),
            (r"blocks/ff_out", r"transformer_blocks.{layer}.ff.net.2"),
            (r"blocks", r"transformer_blocks.{layer}"),
            (r"proj_out", r"proj_out"),
            (r"", r""),
        ),
        # Fixed position embeddings, which some versions save.
        ignored=r"pos_embed\.pos_embed",
    ),
    _pixart,
)
