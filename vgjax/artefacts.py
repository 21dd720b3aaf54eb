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
from vgjax.train import producer

COLUMNS = {made.name: made for made in (PICTURES, VOCABULARY, TEXT, WORDINGS, TOKENS, FACTORS, LATENTS)}


def producers(config: Config) -> dict[str, Producer]:
    """By name, in the order in which they can be made."""
    needs = lambda stage: dict.fromkeys((*stage.artefacts, *stage.needs))
    plan = stages.plan(config)
    trained = {stage.name: producer(stage.name, stage.make, stage.keys, needs(stage), stage.files) for stage in plan}
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


def _condition(condition: conditions.Condition) -> Producer:
    def make(context: Context, folder: pathlib.Path) -> None:
        checkpoint.save_export(folder / VARIABLES, condition.fit(context.rows))

    return Producer("condition", make, keys=condition.fit_keys, needs=condition.fit_columns)
