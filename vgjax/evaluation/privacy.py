"""Privacy: whether drawn pictures, or the denoiser's loss, give away the pictures that it was trained on.

privacy/ is of drawn pictures or of training ones, privacy_real/ the same of real pictures that were not trained on.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from vgjax import build, conditions, parallel, seeds
from vgjax.atomic import write_json
from vgjax.config import Config
from vgjax.context import Context, Producer
from vgjax.data import records
from vgjax.data.records import Rows, SkippedRows
from vgjax.data.stream import ordered_batches
from vgjax.evaluation import copies, draw, fidelity, membership, networks
from vgjax.evaluation.metrics.base import CAPTIONS
from vgjax.evaluation.neighbours import nearest
from vgjax.provenance import peak_rss_mb
from vgjax.stages import denoiser
from vgjax.store import StoreError

SETS = {"": CAPTIONS, "/training_captions": draw.TRAINING}
PAIRS = "pairs.array_record"
SHOWN = 8  # closest pairs of each set
MEMBERS = 1000  # most pictures on either side of membership inference
BATCH = 8  # of these, a device
Named = Iterator[tuple[str, dict[str, Any]]]


def producers(config: Config) -> dict[str, Producer]:
    """The evaluation "privacy", where `evaluate.metrics` names it, and what it looks through."""
    if "privacy" not in config.evaluate.metrics:
        return {}
    condition, own = conditions.of(config), networks.producers(config) | {copies.COPIES.name: copies.COPIES}
    needs = ("pictures", *(f"drawn_{name}" for name in SETS.values()), *own, *condition.needs)
    needs += (*denoiser.columns(config), "condition", "denoiser")
    made = Producer(
        "privacy",
        _measure,
        keys=tuple(dict.fromkeys((*draw.KEYS, "evaluate.resamples", *networks.KEYS, *condition.keys))),
        needs=tuple(dict.fromkeys(needs)),
        files=lambda c: [*networks.files(c), c.denoiser.weights, c.autoencoder.path, c.text_encoder.path],
        collective=True,
    )
    return {**own, made.name: made}


def _measure(context: Context, folder: pathlib.Path) -> dict[str, Any]:
    c = context.config
    rows = {split: context.rows(["pictures"], split) for split in ("train", c.evaluate.split)}
    drawn = {suffix: draw.drawn_rows(context, name) for suffix, name in SETS.items()}
    held_out = SkippedRows(rows[c.evaluate.split], range(c.evaluate.prompts, len(rows[c.evaluate.split])))
    if len(drawn[""]) != len(held_out) * c.evaluate.draws:
        where = context.artefact(f"drawn_{CAPTIONS}").folder
        raise StoreError(f"{where} was drawn of captions that are not all there: delete it and run again")
    how, found = fidelity.Intervals(c.seed, c.evaluate.resamples), dict[str, dict[str, Any]]()
    for net in (networks.load(name, context) for name in dict.fromkeys(("pixel", *c.networks.use))):
        trained, real, fake = (net.apply(copies.pictures_of(x)) for x in (rows["train"], held_out, drawn[""]))
        told = {"net": net.name, "sha256": net.sha256, "resize": net.resize}
        apart = lambda features, trained=trained: nearest(features, trained).distances[:, 0]
        found |= {f"{name}/{net.name}": row | told for name, row in nearness(apart(real), apart(fake), how)}
    known, threshold = copies.load(context.artefact("copies"))
    fixed = {"net": f"thumbnails of {copies.SIDE} pixels", "threshold": threshold}
    pairs: list[dict[str, Any]] = []
    sets: dict[str, Rows] = {"privacy_real/copies": held_out}
    for name, some in (sets | {f"privacy/copies{suffix}": one for suffix, one in drawn.items()}).items():
        near = known.nearest(copies.pictures_of(some))
        found[name] = rate(near.distances < threshold) | fixed
        if some is not held_out:
            pairs += (
                {"set": name, "drawn": some[i]["image"], "distance": float(near.distances[i]), "threshold": threshold}
                | {"training": rows["train"][int(near.rows[i])]["image"]}
                for i in np.argsort(near.distances, kind="stable")[:SHOWN].tolist()
            )
    found |= {f"privacy/membership/{k}": row | {"net": "denoiser"} for k, row in membership_of(context)}
    if parallel.is_main():
        records.write(folder / PAIRS, pairs)
        split = lambda name: "train, validation" if "membership" in name else c.evaluate.split
        write_json(folder / "metrics.json", {k: {**row, "split": split(k)} for k, row in found.items()})
    return {"peak_rss_mb": peak_rss_mb()}


def nearness(real: np.ndarray, drawn: np.ndarray, how: fidelity.Intervals) -> Named:
    """Distances to the nearest training picture: their mean and 5 % quantile, and whether drawn ones lie nearer.

    nearer is the share of captions whose drawn pictures, in the mean, lie nearer than the real one; its p is of
    Wilcoxon's signed-rank test, one-sided: small where drawn pictures lie nearer.

    Args:
      real, drawn: (N,) and, of the same captions, once or several times over, (D N,).
    """
    for prefix, values in (("privacy_real", real), ("privacy", drawn)):
        yield f"{prefix}/nearest", how.mean(values)
        rng, q05 = np.random.default_rng(how.seed), lambda some: float(np.quantile(some, 0.05))
        again = [q05(rng.choice(values, len(values))) for _ in range(how.resamples)]
        interval = tuple(np.percentile(again, (2.5, 97.5)).tolist())
        yield f"{prefix}/nearest_q05", {"value": q05(values), "interval": interval, "n": len(values)}
    difference = drawn.reshape(-1, len(real)).mean(0) - real
    p = float(scipy.stats.wilcoxon(difference, alternative="less").pvalue) if difference.any() else 1.0
    yield "privacy/nearer", rate(difference < 0) | {"p": p, "note": f"p = {p:.2g} that they are not nearer"}


def rate(hits: np.ndarray) -> dict[str, Any]:
    """A share with its exact interval (Clopper and Pearson 1934)."""
    low, high = scipy.stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(method="exact")
    return {"value": float(hits.mean()), "interval": (float(low), float(high)), "n": len(hits)}


def membership_of(context: Context) -> Named:
    """How well the trained denoiser's loss tells training pictures from as many of validation."""
    stage = denoiser.Denoising(context)
    columns = tuple(dict.fromkeys(("pictures", *stage.columns)))
    params, rng = context.variables("denoiser")["params"], np.random.default_rng(context.config.seed)
    found = {split: context.rows(columns, split) for split in ("train", "validation")}
    count = min(MEMBERS, *map(len, found.values()))
    sides = []
    for source in found.values():
        # Further views of a training picture have none among the validation pictures to match them.
        chosen = (i for i in rng.permutation(len(source)).tolist() if "//" not in source[i]["id"])
        kept = {i for i, _ in zip(chosen, range(count), strict=False)}
        rows = SkippedRows(source, [i for i in range(len(source)) if i not in kept])
        sides.append(losses(context, stage, params, rows))
    count = min(map(len, sides))
    members, others = (side[:count] for side in sides)
    yield from membership.estimates(members, others, context.config.seed, context.config.evaluate.resamples)


def losses(context: Context, stage: denoiser.Denoising, params: Any, rows: SkippedRows) -> np.ndarray:
    """Losses of pictures, (N, T), at each of `membership.SHARES`: means over the noises."""
    config, mesh = context.config, context.mesh
    process, shape = build.process(config), build.latent_shape(config)
    key = seeds.key_of(seeds.derive(config.seed, "membership"))
    noises = jax.random.normal(key, (membership.NOISES, *shape))
    times = jnp.array([process.time(share) for share in membership.SHARES], jnp.float32)

    @jax.jit
    def apply(params: Any, frozen: Any, batch: Any) -> jax.Array:
        at = lambda t: jax.lax.map(lambda noise: stage.errors_at(params, frozen, batch, t, noise), noises).mean(0)
        return jax.lax.map(at, times).T

    # A row of one caption, where the condition reads captions.
    example = lambda row: stage.example({**row, **{name: row[name][0] for name in stage.worded}})
    size, found = BATCH * mesh.shape["data"] * mesh.shape["fsdp"], []
    params, frozen = jax.device_put((params, stage.frozen), parallel.replicated(mesh))
    with jax.set_mesh(mesh):
        for batch, valid in ordered_batches(rows, example, size):
            mine = jax.tree.map(lambda a: a[parallel.process_rows(size)], batch)
            found.append(parallel.gather(apply(params, frozen, parallel.to_global(mine, mesh)))[:valid])
    return np.concatenate(found)
