"""What a config's run consists of: the makers of its artefacts, each after those that it needs."""

import pathlib

from vgjax import checkpoint, conditions, stages
from vgjax.config import Config
from vgjax.context import VARIABLES, Context, Producer
from vgjax.data.prepare.pictures import PICTURES
from vgjax.evaluation import evaluate as evaluation
from vgjax.features.factors import FACTORS
from vgjax.features.latents import LATENTS
from vgjax.features.text import TEXT, TOKENS, VOCABULARY, WORDINGS
from vgjax.stages.base import StageSpec
from vgjax.train import train

COLUMNS = {made.name: made for made in (PICTURES, VOCABULARY, TEXT, WORDINGS, TOKENS, FACTORS, LATENTS)}


def producers(config: Config) -> dict[str, Producer]:
    """By name, in the order in which they can be made."""
    trained = {stage.name: _stage(stage) for stage in stages.plan(config)}
    measured = evaluation.producers(config)
    known = {**COLUMNS, **trained, "condition": _condition(conditions.of(config)), **measured}
    ordered: dict[str, Producer] = {}

    def add(name: str) -> None:
        for need in known[name].needs:
            add(need)
        ordered.setdefault(name, known[name])

    for name in (*trained, *evaluation.evaluations(config)):
        add(name)
    return ordered


def _stage(stage: StageSpec) -> Producer:
    logging_key = f"{stage.name}.train.log_every_steps"
    return Producer(
        stage.name,
        lambda context, folder: train(context, stage.make(context), folder),
        keys=(*stage.keys, f"-{logging_key}"),
        needs=tuple(dict.fromkeys((*stage.artefacts, *stage.needs))),
        free=(logging_key,),
        files=stage.files,
        trained=True,
        collective=True,
        loose=("log.jsonl", "tensorboard/*"),
    )


def _condition(condition: conditions.Condition) -> Producer:
    def make(context: Context, folder: pathlib.Path) -> None:
        checkpoint.save_export(folder / VARIABLES, condition.fit(context.rows))

    return Producer("condition", make, keys=condition.fit_keys, needs=condition.fit_columns)
