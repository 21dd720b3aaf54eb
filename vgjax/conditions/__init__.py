"""What the transformer can be told, by the name that config key `denoiser.condition` takes."""

from collections.abc import Callable

from vgjax.conditions.base import Condition
from vgjax.conditions.class_label import ClassLabelCondition
from vgjax.conditions.factors import FactorsCondition
from vgjax.conditions.published import PublishedCondition
from vgjax.config import Config

CONDITIONS: dict[str, Callable[[Config], Condition]] = {
    "factors": FactorsCondition,
    "published": PublishedCondition,
    "class_label": ClassLabelCondition,
}


def of(config: Config) -> Condition:
    """The condition that the config names."""
    return CONDITIONS[config.denoiser.condition](config)
