"""The trained stages; `plan` orders those that a config consists of, and the one training loop drives each."""

from vgjax import conditions
from vgjax.config import Config
from vgjax.stages import denoiser, disentangler, prior
from vgjax.stages.base import StageSpec


def plan(config: Config) -> tuple[StageSpec, ...]:
    """The stages of a config in order: the denoiser and whatever its condition needs."""
    specs = {
        "prior": StageSpec("prior", prior.PriorStage, prior.load_pretrained, ()),
        "disentangler": StageSpec("disentangler", disentangler.Alignment, disentangler.load_pretrained, ("prior",)),
        "denoiser": StageSpec("denoiser", denoiser.Denoising, denoiser.check, conditions.of(config).needs),
    }
    ordered: dict[str, StageSpec] = {}

    def add(name: str) -> None:
        for needed in specs[name].needs:
            add(needed)
        ordered.setdefault(name, specs[name])

    add("denoiser")
    return tuple(ordered.values())
