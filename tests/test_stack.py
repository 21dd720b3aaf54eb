"""What one set of library versions stored, another goes on with: records, a checkpoint, the data iterator's state."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import phantom
from vgjax import optim, parallel, train
from vgjax import run as runs
from vgjax.checkpoint import Checkpoints
from vgjax.context import Context
from vgjax.data.stream import training_batches
from vgjax.stages.prior import PriorStage
from vgjax.state import create

REPO = Path(__file__).parents[1]
STEPS = 2  # of the checkpoint; training goes on to one more


def opened(folder: Path) -> Context:
    """The smoke variant with its records, whose stage 1 takes one step more than the checkpoint has."""
    c = phantom.get_config("smoke")
    c.prior.train.update(dict(steps=STEPS + 1, checkpoint_every_steps=STEPS, log_every_steps=1))
    run = runs.open_run(c, str(folder / "run"))
    run.artefact("pictures")
    return run.context


def stored(context: Context, folder: Path) -> dict[str, np.ndarray]:
    """Everything in the checkpoint of step `STEPS`, and the batch that comes next."""
    stage = PriorStage(context)
    tx = optim.optimizer(stage.training)
    shapes = jax.eval_shape(lambda key: create(*stage.init(key), tx, stage.training.ema_decay), jax.random.key(0))
    with Checkpoints(folder / "stage" / "checkpoints") as saved:
        state, position = saved.restore(STEPS, parallel.placed(shapes, context.mesh))
    data = training_batches(stage.source("train"), stage.example, stage.training.batch_size, 0)
    data.set_state(position)
    found = {**next(data), **{parallel.path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(state)}}
    data.close()
    return {name: np.asarray(value) for name, value in found.items()}


@pytest.fixture
def other_python() -> str:
    """VGJAX_OTHER_PYTHON names the Python of another environment with the development set."""
    python = os.environ.get("VGJAX_OTHER_PYTHON")
    if not python:
        pytest.skip("VGJAX_OTHER_PYTHON names no Python of another environment")
    return python


@pytest.mark.slow
def test_what_another_environment_stored_is_gone_on_with(tmp_path, other_python):
    subprocess.run([other_python, "-m", "tests.test_stack", str(tmp_path)], cwd=REPO, check=True)
    context, folder = opened(tmp_path), tmp_path / "stage"
    here = stored(context, tmp_path)
    with np.load(tmp_path / "stored.npz") as there:
        assert set(there) == set(here) and {"step", "image"} < set(here)
        for name in here:
            np.testing.assert_array_equal(here[name], there[name], err_msg=name, strict=True)
    train.train(context, PriorStage(context), folder)
    rows = train.read_log(folder / train.LOG)
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3]
    assert all(np.isfinite(row["loss"]) for row in rows if row["kind"] == "train")


class Stopped(Exception):
    """After the checkpoint."""


class StoppingLog(train.Log):
    """Ends training before its last step is noted."""

    def step(self, step: int, terms, waited: float) -> None:
        if step > STEPS:
            raise Stopped
        super().step(step, terms, waited)


if __name__ == "__main__":
    at = Path(sys.argv[1])
    begun = opened(at)
    (at / "stage").mkdir()
    train.Log = StoppingLog  # type: ignore[misc]
    try:
        train.train(begun, PriorStage(begun), at / "stage")
    except Stopped:
        np.savez(at / "stored.npz", allow_pickle=False, **stored(begun, at))
