"""The trained stages; `plan` orders those that a config consists of, and the one training loop drives each."""

from vgjax import conditions
from vgjax.config import Config
from vgjax.stages import denoiser, disentangler, prior
from vgjax.stages.base import StageSpec


def plan(config: Config) -> tuple[StageSpec, ...]:
    """The stages of a config in order: the denoiser and whatever its condition needs."""
    condition = conditions.of(config)
    specs = {
        "prior": StageSpec(
            "prior",
            make=prior.PriorStage,
            check=prior.load_pretrained,
            needs=(),
            columns=("pictures",),
            keys=("seed", "prior.*", "data.image_size", "data.intensity"),
            files=lambda c: [c.prior.weights, c.prior.vgg_path],
        ),
        "disentangler": StageSpec(
            "disentangler",
            make=disentangler.Alignment,
            check=disentangler.load_pretrained,
            needs=("prior",),
            columns=("text", "factors"),
            keys=("seed", "disentangler.*", "prior.*", "-prior.train.*", "text_encoder.*"),
            files=lambda c: [c.disentangler.weights],
        ),
        "denoiser": StageSpec(
            "denoiser",
            make=denoiser.Denoising,
            check=denoiser.check,
            needs=condition.needs,
            columns=denoiser.columns(config),
            keys=(
                *("seed", "denoiser.*", "autoencoder.*", "diffusion.*", "data.image_size", "data.intensity"),
                *condition.keys,
            ),
            files=lambda c: [c.denoiser.weights, c.denoiser.hffm_weights, c.denoiser.lora.weights],
        ),
    }
    ordered: dict[str, StageSpec] = {}

    def add(name: str) -> None:
        for needed in specs[name].needs:
            add(needed)
        ordered.setdefault(name, specs[name])

    add("denoiser")
    return tuple(ordered.values())
