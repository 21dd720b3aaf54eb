"""Nothing that is not finite is kept, damage to a checkpoint costs that checkpoint, and a lower rate goes on."""

import concurrent.futures
import fcntl
import json
import logging
import pathlib
import shutil
import signal
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_boundary import interruptible
from vgjax import parallel, train
from vgjax.config import ConfigError, Mesh, Training
from vgjax.recipes import Recipe
from vgjax.stages.base import Stage
from vgjax.store import NOT_FINITE, Store

BAD = 4  # the step at which a `Toy` at a high rate goes wrong, counted from 1
FAULTS = {  # what is added to the loss: (w, whether it is that step) -> scalar
    "": lambda w, at: 0.0,
    "loss": lambda w, at: jnp.where(at, jnp.inf, 0.0),  # with a finite gradient
    "gradient": lambda w, at: 0.1 * jnp.sqrt((1 - at) * (w - 5) ** 2),  # of a finite loss
}


class Toy(Stage):
    """One weight that AdamW moves by the learning rate a step; its own value tells how many steps were taken."""

    name, small, weights = "prior", True, {"error": 1.0}

    def __init__(self, fault="", rate=0.5, start=0.0, score=0.0, pretrained=None, **more):
        options = {"steps": 8, "checkpoint_every_steps": 2, "log_every_steps": 1000, "schedule": "constant"}
        self.training = Training(batch_size=4, learning_rate=rate, warmup_steps=0, clip_norm=0.0, **options | more)
        self.fault, self.first, self.score, self.given = fault, start, score, pretrained

    def init(self, key):
        return {"w": jnp.full((), self.first), "noise": jnp.zeros(3000)}, {}

    def pretrained(self):
        return None if self.given is None else ({"w": jnp.float32(self.given)}, {})

    def loss(self, params, model_state, frozen, batch, key):
        w, rate = params["w"], self.training.learning_rate
        noise = (params["noise"] * jax.random.normal(key, (3000,))).sum()
        at = (jax.lax.stop_gradient(jnp.round(-w / rate)) == BAD - 1) & (rate > 0.1)
        return {"error": w + noise + batch["x"].mean() + FAULTS[self.fault](w, at)}, {}

    def validate(self, params, model_state, frozen, batch, key):
        return {"score": params["w"] + batch["x"] + jnp.where(params["w"] < -1.9, self.score, 0.0)}

    def source(self, split):
        return [{"x": np.float32(i)} for i in range(8)]

    def example(self, row):
        return row


MESH = parallel.make_mesh(Mesh(data=-1, fsdp=1, tensor=1))
CONTEXT = types.SimpleNamespace(config=types.SimpleNamespace(seed=(1 << 64) - 1), mesh=MESH)


def fit(stage: Stage, folder: pathlib.Path) -> dict:
    return train.train(CONTEXT, stage, folder)


def checkpoints(folder: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("stage", "what", "step", "kept"),
    [
        (Toy("loss"), "a weight is nan", 4, 2),
        (Toy("loss", log_every_steps=1), "a loss is inf", 4, 2),
        (Toy("gradient"), "a weight is nan", 4, 2),
        (Toy("gradient", log_every_steps=1), "a gradient_norm is nan", 4, 2),
        (Toy("loss", checkpoint_every_steps=8), "a weight is nan", 8, 0),
        (Toy(rate=2e38, start=-3e38, steps=1), "a weight is inf", 1, 0),
        (Toy(score=np.nan), "a validation score is nan", 4, 2),
    ],
)
def test_what_is_not_finite_is_refused_and_the_last_finite_checkpoint_stays(tmp_path, stage, what, step, kept):
    rate = stage.training.learning_rate
    wanted = rf"^stage 'prior': {what} by step {step}: lower config key 'prior.train.learning_rate', which is "
    for _ in range(2):  # the same command again comes to the same end
        with pytest.raises(ConfigError, match=wanted) as caught:
            fit(stage, tmp_path)
        assert str(caught.value).endswith(f"which is {rate}, and training goes on from step {kept}")
        assert checkpoints(tmp_path) == [kept][:kept]
        assert json.loads((tmp_path / NOT_FINITE).read_text()) == {str(rate): kept}
    assert not (tmp_path / train.VARIABLES).exists() and not (tmp_path / train.DONE).exists()


def test_no_step_waits_for_a_look(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(train.Log, "_refuse", lambda self, step, values: looked.append((step, *values)))
    fit(Toy(checkpoint_every_steps=4), tmp_path)
    assert looked == [(step, "weight", "validation score") for step in (4, 8)]


def test_weights_from_elsewhere_that_are_not_finite_are_refused(tmp_path):
    assert fit(Toy(pretrained=1.0), tmp_path / "good")["step"] == 0
    with pytest.raises(ConfigError, match=r"^stage 'prior': its weights hold numbers that are not finite"):
        fit(Toy(pretrained=np.nan), tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


# ---------------------------------------------------------------- a lower learning rate


def recipe(rate: float, steps: int = 8) -> Recipe:
    return Recipe("prior", 1, {"prior.train.learning_rate": rate, "prior.train.steps": steps}, trained=True)


def made(store: Store, stage: Stage, steps: int = 8):
    return store.get(recipe(stage.training.learning_rate, steps), lambda folder: fit(stage, folder))


@pytest.fixture
def stopped(tmp_path) -> Store:
    """A store whose stage came to a loss that is not finite at a rate of 0.5."""
    store = Store(tmp_path / "store")
    with pytest.raises(ConfigError):
        made(store, Toy("loss"))
    return store


def test_a_lower_rate_goes_on_from_the_last_finite_checkpoint_and_says_so(stopped, caplog):
    found = made(stopped, Toy("loss", rate=0.0625))
    assert (caplog.messages[0]).endswith("at a lower prior.train.learning_rate than 0.5")
    w = train.checkpoint.load_export(found.path(train.VARIABLES))["params"]["w"]
    assert w == pytest.approx(-2 * 0.5 - 6 * 0.0625, rel=1e-5)  # two steps at the first rate
    assert found.manifest["info"]["not_finite"] == {"0.5": 2}
    assert [path.name for path in stopped.root.glob("prior-*[0-9a-f]*") if path.is_dir()] == [found.folder.name]
    fresh = Store(stopped.root.parent / "other").get(recipe(0.0625), lambda folder: fit(Toy(rate=0.0625), folder))
    assert "not_finite" not in fresh.manifest["info"]


@pytest.mark.parametrize("text", [b"{", b"\xff", b""])
def test_a_damaged_note_of_the_rates_is_told(stopped, text):
    noted = stopped.root / f"{recipe(0.5).label}.part" / NOT_FINITE
    noted.write_bytes(text)
    with pytest.raises(ConfigError, match=rf"{NOT_FINITE}' is damaged: delete it and run again"):
        made(stopped, Toy("loss"))
    noted.unlink()
    assert made(stopped, Toy()).manifest["info"]["step"] == 8


@pytest.mark.parametrize("line", [b"{", b"\xff", b"3", b'{"stdp": 2, "kind": "train", "elapsed_s": 1}'])
def test_a_damaged_row_of_a_log_costs_itself(tmp_path, line):
    rows = [{"step": step, "kind": "train", "elapsed_s": 1.0} for step in (1, 3)]
    first, last = (json.dumps(row).encode() for row in rows)
    (tmp_path / train.LOG).write_bytes(b"\n".join([first, line, last]))
    assert train.read_log(tmp_path / train.LOG) == rows


@pytest.mark.parametrize("other", ["higher", "another key", "not stopped", "under way"])
def test_nothing_else_is_gone_on_with(stopped, other):
    old = stopped.root / f"{recipe(0.5).label}.part"
    stage, steps = Toy(rate=1.0 if other == "higher" else 0.0625), 9 if other == "another key" else 8
    if other == "not stopped":
        (old / NOT_FINITE).unlink()
    with (stopped.root / f"{recipe(0.5).label}.lock").open("a") as lock:
        if other == "under way":
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
        found = made(stopped, stage, steps)
    w = train.checkpoint.load_export(found.path(train.VARIABLES))["params"]["w"]
    assert w == pytest.approx(-8 * stage.training.learning_rate, rel=1e-5)
    assert old.exists()


# ---------------------------------------------------------------- damaged checkpoints


class Killed(Exception):
    pass


def killed(folder: pathlib.Path, monkeypatch, step: int = 7) -> None:
    """A training that ends between two checkpoints: those of 4 and 6 and, as the best, of 2 are there."""

    def killing(self, now, terms, waited):
        if now == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train.Log, "step", killing)
        with pytest.raises(Killed):
            fit(Toy(), folder)


def flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    return max(folder.glob("state/ocdbt.process_0/d/*"), key=lambda path: path.stat().st_size)


DAMAGES = {
    "a bit of the weights": lambda folder: flip(largest_file(folder)),  # which Orbax would restore as it is
    "the score": lambda folder: flip(folder / "metrics" / "metrics"),
    "cut": lambda folder: largest_file(folder).write_bytes(b""),
    "a folder lost": lambda folder: shutil.rmtree(folder / "data"),
    "the digests": lambda folder: (folder / train.checkpoint.DIGESTS).write_text("{"),
    "no digests": lambda folder: (folder / train.checkpoint.DIGESTS).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_costs_itself_and_is_told(tmp_path, monkeypatch, caplog, damage):
    caplog.set_level(logging.WARNING)
    whole = fit(Toy(), tmp_path / "whole")
    killed(tmp_path / "stage", monkeypatch)
    newest = checkpoints(tmp_path / "stage")[-1]
    assert newest == 6
    DAMAGES[damage](tmp_path / "stage" / "checkpoints" / "6")
    started = []
    start = train.Log.start
    monkeypatch.setattr(train.Log, "start", lambda self, step: started.append(step) or start(self, step))
    assert fit(Toy(), tmp_path / "stage")["fingerprint"] == whole["fingerprint"]
    assert started == [4]
    (told,) = [message for message in caplog.messages if "damaged" in message]
    assert told.startswith(f"checkpoint {tmp_path / 'stage' / 'checkpoints' / '6'} is damaged")


def test_a_checkpoint_that_was_being_deleted_is_not_asked_for_its_score(tmp_path, monkeypatch):
    whole = fit(Toy(keep="best"), tmp_path / "whole")
    killed(tmp_path / "stage", monkeypatch)
    half = shutil.copytree(tmp_path / "stage" / "checkpoints" / "4", tmp_path / "stage" / "checkpoints" / "1")
    for left in (train.checkpoint.DIGESTS, "_CHECKPOINT_METADATA", "metrics/metrics"):
        (half / left).unlink()
    assert fit(Toy(keep="best"), tmp_path / "stage")["fingerprint"] == whole["fingerprint"]


def test_where_every_checkpoint_is_damaged_training_begins_anew(tmp_path, monkeypatch, caplog):
    whole = fit(Toy(), tmp_path / "whole")
    killed(tmp_path / "stage", monkeypatch)
    there = checkpoints(tmp_path / "stage")
    for step in there:
        flip(largest_file(tmp_path / "stage" / "checkpoints" / str(step)))
    assert fit(Toy(), tmp_path / "stage")["fingerprint"] == whole["fingerprint"]
    assert len([message for message in caplog.messages if "damaged" in message]) == len(there) >= 2


@pytest.mark.parametrize("damage", ["note", "export", "no export"])
def test_a_finished_training_whose_export_is_not_whole_is_made_again(tmp_path, caplog, damage):
    done = fit(Toy(), tmp_path)
    assert fit(Toy(fault="loss"), tmp_path) == done  # as it is noted, without a step
    noted, export = tmp_path / train.DONE, tmp_path / train.VARIABLES
    {"note": lambda: noted.write_text("{"), "export": lambda: flip(export), "no export": export.unlink}[damage]()
    with caplog.at_level(logging.WARNING):
        again = fit(Toy(), tmp_path)
    assert again["fingerprint"] == done["fingerprint"] and again["step"] == done["step"]
    assert f"{tmp_path}: the export of a finished training is damaged or gone" in caplog.text


def test_a_training_killed_while_it_deleted_its_checkpoints_deletes_the_rest(tmp_path):
    done = fit(Toy(), tmp_path)
    (tmp_path / "checkpoints" / "6" / "state").mkdir(parents=True)
    assert fit(Toy(), tmp_path) == done and not (tmp_path / "checkpoints").exists()


# ---------------------------------------------------------------- interrupts in a save


@pytest.fixture
def interrupting(monkeypatch):
    """So many interrupts come while the first checkpoint is being saved."""
    saving, left = train.checkpoint.file_digests, []

    def interrupted(*arguments):
        while left:
            left.pop()
            signal.raise_signal(signal.SIGINT)
        return saving(*arguments)

    monkeypatch.setattr(train.checkpoint, "file_digests", interrupted)
    with interruptible():
        yield left


def test_an_interrupt_waits_until_a_checkpoint_is_whole(tmp_path, interrupting):
    whole = fit(Toy(), tmp_path / "whole")
    interrupting.append(1)
    with pytest.raises(KeyboardInterrupt):
        fit(Toy(), tmp_path / "stage")
    assert checkpoints(tmp_path / "stage") == [2]
    assert (tmp_path / "stage" / "checkpoints" / "2" / train.checkpoint.DIGESTS).exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert fit(Toy(), tmp_path / "stage")["fingerprint"] == whole["fingerprint"]


def test_a_second_interrupt_does_not_wait(tmp_path, interrupting):
    interrupting += [1, 2]
    with pytest.raises(KeyboardInterrupt):
        fit(Toy(), tmp_path)
    assert not (tmp_path / "checkpoints" / "2" / train.checkpoint.DIGESTS).exists()


def test_where_interrupts_are_ignored_or_go_to_another_thread_nothing_waits(tmp_path, interrupting):
    interrupting.append(1)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        done = pool.submit(fit, Toy(), tmp_path / "thread")
        with pytest.raises(KeyboardInterrupt):
            while not done.done():
                time.sleep(0.01)
        assert done.result()["step"] == 8
    interrupting.append(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert fit(Toy(), tmp_path / "ignored")["fingerprint"] == done.result()["fingerprint"]
