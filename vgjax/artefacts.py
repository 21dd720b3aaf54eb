"""What a config's run consists of: the makers of its artefacts, each after those that it needs."""

import pathlib

from vgjax import checkpoint, conditions, stages
from vgjax.config import Config
from vgjax.context import VARIABLES, Context, Producer
from vgjax.data.prepare.pictures import PICTURES
from vgjax.evaluation import evaluate as evaluation
from vgjax.features.factors import FACTORS
from vgjax.features.latents import LATENTS
from vgjax.features.text import TEXT, TOKENS
from vgjax.stages.base import StageSpec
from vgjax.train import train

COLUMNS = {column.name: column for column in (PICTURES, TEXT, TOKENS, FACTORS, LATENTS)}


def producers(config: Config) -> dict[str, Producer]:
    """By name, in the order in which they can be made."""
    ordered: dict[str, Producer] = {}
    condition = conditions.of(config)
    for stage in stages.plan(config):
        conditioned = stage.name == "denoiser"
        for name in (*stage.columns, *(condition.fit_columns if conditioned else ())):
            _add_column(ordered, name)
        if conditioned:
            ordered["condition"] = _condition(condition)
        ordered[stage.name] = _stage(stage, ("condition",) if conditioned else ())
    return ordered | evaluation.producers(config)


def _add_column(ordered: dict[str, Producer], name: str) -> None:
    producer = COLUMNS[name]
    for need in producer.needs:
        if need in COLUMNS:
            _add_column(ordered, need)
    ordered.setdefault(name, producer)


def _stage(stage: StageSpec, extra: tuple[str, ...]) -> Producer:
    logging_key = f"{stage.name}.train.log_every_steps"
    return Producer(
        stage.name,
        lambda context, folder: train(context, stage.make(context), folder),
        keys=(*stage.keys, f"-{logging_key}"),
        needs=tuple(dict.fromkeys((*stage.columns, *stage.needs, *extra))),
        free=(logging_key,),
        files=stage.files,
        trained=True,
        collective=True,
        loose=("log.jsonl", "tensorboard/*"),
    )


def _condition(condition: conditions.Condition) -> Producer:
    def make(context: Context, folder: pathlib.Path) -> None:
        frozen = {stage: context.variables(stage) for stage in condition.needs}
        checkpoint.save_export(folder / VARIABLES, conditions.of(context.config).fit(frozen, context.rows))

    return Producer("condition", make, condition.keys, tuple(dict.fromkeys((*condition.fit_columns, *condition.needs))))
