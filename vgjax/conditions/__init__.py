"""What the transformer can be conditioned on, by the name that config key `denoiser.condition` takes."""

from collections.abc import Callable

from vgjax.conditions.base import Condition
from vgjax.conditions.class_label import ClassLabelCondition
from vgjax.conditions.factors import FactorsCondition
from vgjax.conditions.published import PublishedCondition
from vgjax.config import Config, ConfigError

CONDITIONS: dict[str, Callable[[Config], Condition]] = {
    "factors": FactorsCondition,
    "published": PublishedCondition,
    "class_label": ClassLabelCondition,
}


def of(config: Config) -> Condition:
    """The condition that the config names."""
    return CONDITIONS[config.denoiser.condition](config)


def check(config: Config) -> None:
    """Raises ConfigError unless guidance and dropout are set for the channels of the condition and no others."""
    wanted = of(config).channels
    for key, found in (("sample.guidance", config.sample.guidance), ("denoiser.dropout", config.denoiser.dropout)):
        if set(found) != set(wanted):
            raise ConfigError(
                f"config key '{key}' names {', '.join(found) or 'nothing'}, but the channels of condition"
                f" '{config.denoiser.condition}' are {', '.join(wanted)}: set a number for each"
            )
