"""What the transformer can be conditioned on, by the name that config key `denoiser.condition` takes."""

from collections.abc import Callable, Mapping, Sequence

from vgjax.conditions.base import Condition
from vgjax.conditions.class_label import ClassLabelCondition
from vgjax.conditions.factors import FactorsCondition
from vgjax.conditions.published import PublishedCondition
from vgjax.conditions.text_heads import TextHeadsCondition
from vgjax.conditions.text_tokens import TextTokens
from vgjax.config import Config, ConfigError
from vgjax.types import CHANNELS

CONDITIONS: dict[str, Callable[[Config], Condition]] = {
    "factors": FactorsCondition,
    "published": PublishedCondition,
    "class_label": ClassLabelCondition,
    "text_tokens": TextTokens,
    "text_heads": TextHeadsCondition,
}


def of(config: Config) -> Condition:
    """The condition that the config names."""
    return CONDITIONS[config.denoiser.condition](config)


def check(config: Config) -> None:
    """Raises ConfigError unless what is set by channel is set for those that there are and no others."""
    wanted, told = of(config).channels, f"condition '{config.denoiser.condition}'"
    by_channel: dict[str, tuple[Mapping[str, float], Sequence[str], str]] = {
        "sample.guidance": (config.sample.guidance, wanted, told),
        "denoiser.dropout": (config.denoiser.dropout, wanted, told),
        "sample.text_guidance": (config.sample.text_guidance, CHANNELS, "the factors"),
        "disentangler.flow_width": (config.disentangler.flow_width, CHANNELS, "the factors"),
    }
    for key, (found, channels, whose) in by_channel.items():
        if set(found) != set(channels):
            raise ConfigError(
                f"config key '{key}' names {', '.join(found) or 'nothing'}, but the channels of {whose} are"
                f" {', '.join(channels)}: set a number for each"
            )
