"""The trained stages; `plan` orders those that a config consists of, and the one training loop drives each."""

from vgjax import conditions
from vgjax.config import Config
from vgjax.stages import denoiser, disentangler, prior
from vgjax.stages.base import StageSpec


def plan(config: Config) -> tuple[StageSpec, ...]:
    """The stages of a config in order: the denoiser and whatever its condition needs."""
    condition, picture_keys = conditions.of(config), ("data.image_size", "data.intensity")
    specs = (
        StageSpec(
            "prior",
            make=prior.PriorStage,
            check=prior.load_pretrained,
            needs=(),
            columns=prior.PriorStage.columns,
            keys=("seed", "prior.*", *picture_keys),
            files=lambda c: [c.prior.weights, c.prior.vgg_path],
        ),
        StageSpec(
            "disentangler",
            make=disentangler.Alignment,
            check=disentangler.load_pretrained,
            needs=("prior",),
            columns=disentangler.Alignment.columns,
            keys=("seed", "disentangler.*", "prior.*", "-prior.train.*", "text_encoder.*"),
            files=lambda c: [c.disentangler.weights],
        ),
        StageSpec(
            "denoiser",
            make=denoiser.Denoising,
            check=denoiser.check,
            needs=condition.needs,
            columns=denoiser.columns(config),
            keys=("seed", "denoiser.*", "autoencoder.*", "diffusion.*", *picture_keys, *condition.keys),
            files=lambda c: [c.denoiser.weights, c.denoiser.hffm_weights, c.denoiser.lora.weights],
        ),
    )
    wanted = {"denoiser"}
    for spec in reversed(specs):  # each stands after those that it needs
        if spec.name in wanted:
            wanted |= set(spec.needs)
    return tuple(spec for spec in specs if spec.name in wanted)
