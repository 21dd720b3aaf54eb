"""The trained stages; `plan` orders those that a config consists of, and the one training loop drives each."""

from vgjax import conditions
from vgjax.config import Config
from vgjax.stages import denoiser, disentangler, prior, text_to_factors
from vgjax.stages.base import StageSpec


def plan(config: Config) -> tuple[StageSpec, ...]:
    """The stages of a config in order: the denoiser and whatever its condition needs, to train and to draw."""
    condition, common_keys = conditions.of(config), ("seed", "data.image_size", "data.intensity")
    text_keys = ("seed", "disentangler.*", "prior.*", "-prior.train.*", "text_encoder.*")
    text_stages = {
        "regression": StageSpec(
            "disentangler",
            make=disentangler.Alignment,
            check=disentangler.load_pretrained,
            needs=("prior",),
            artefacts=disentangler.Alignment.columns,
            keys=text_keys,
            files=lambda c: [c.disentangler.weights],
        ),
        "flow": StageSpec(
            "disentangler",
            make=text_to_factors.TextToFactors,
            needs=("prior",),
            artefacts=(*text_to_factors.TextToFactors.columns, "condition"),
            keys=(*text_keys, "denoiser.components"),
        ),
    }
    specs = (
        StageSpec(
            "prior",
            make=prior.PriorStage,
            check=prior.load_pretrained,
            needs=(),
            artefacts=prior.PriorStage.columns,
            keys=("prior.*", *common_keys),
            files=lambda c: [c.prior.weights, c.prior.vgg_path],
        ),
        text_stages[config.disentangler.method],
        StageSpec(
            "denoiser",
            make=denoiser.Denoising,
            check=denoiser.check,
            needs=condition.needs,
            artefacts=(*denoiser.columns(config), "condition"),
            keys=("denoiser.*", "autoencoder.*", "diffusion.*", "sample.solver", *common_keys, *condition.keys),
            files=lambda c: [c.denoiser.weights, c.denoiser.hffm_weights, c.denoiser.lora.weights],
        ),
    )
    wanted = {"denoiser", *condition.request_needs}
    for spec in reversed(specs):  # each stands after those that it needs
        if spec.name in wanted:
            wanted |= set(spec.needs)
    return tuple(spec for spec in specs if spec.name in wanted)
