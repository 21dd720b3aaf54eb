"""The processes that decode: what becomes of them, and of the work, when one of them or their parent is killed."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPO
from tests.test_hostile_artefacts import damage
from vgjax.data.caption import words
from vgjax.data.entries import Entry
from vgjax.data.prepare import parts
from vgjax.data.read.decode import Settings

# Prints the ids of the processes that decode, as soon as all are there.
DECODING = """
import multiprocessing, pathlib, signal, sys, threading, time
from vgjax import boundary
from vgjax.config import ConfigError
from vgjax.data.caption import words
from vgjax.data.entries import Entry
from vgjax.data.prepare import parts
from vgjax.data.read.decode import Settings

def tell():
    while len(found := multiprocessing.active_children()) < 2:
        time.sleep(0.01)
    print(*(child.pid for child in found), flush=True)

signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell are started without
sys.unraisablehook = boundary._pass_on  # an interrupt in a callback of JAX reaches us still
root = pathlib.Path(sys.argv[1])
parts.CHUNK, parts.FEW = 4, 0
entries = [Entry(f"{number}", root / "a.png") for number in range(4000)]
threading.Thread(target=tell, daemon=True).start()
try:
    parts.Parts(root / "parts", entries, Settings(str(root), 32, "crop", 10**8, words.ANY)).decode(2)
except ConfigError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture
def decoding(tmp_path) -> Iterator[tuple[subprocess.Popen, list[int]]]:
    """A process that decodes for minutes in two others, and the ids of those."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 900, 3), np.uint8)).save(tmp_path / "a.png")
    command = [sys.executable, "-c", DECODING, str(tmp_path)]
    process = subprocess.Popen(
        command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    yield process, [int(number) for number in process.stdout.readline().split()]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_no_process_outlives_a_killed_preparation(decoding):
    process, children = decoding
    assert len(children) == 2
    process.kill()
    process.communicate(timeout=120)  # ends when the last process that inherited its output has


def test_a_killed_decoder_ends_in_one_sentence(decoding, tmp_path):
    process, children = decoding
    os.kill(children[0], signal.SIGKILL)
    told = process.communicate(timeout=120)[1].splitlines()[-1]
    assert process.returncode == 1
    assert told.startswith("error: a process that decodes was killed") and "data.workers" in told
    assert (tmp_path / "parts").is_dir()


def test_an_interrupt_ends_all_and_is_told_by_one(decoding):
    process, _ = decoding
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == -signal.SIGINT
    assert told.count("Traceback") == 1 and "SpawnProcess" not in told


@pytest.mark.parametrize("kind", ["cut", "empty", "flipped", "pipe", "dangling"])
def test_what_a_killed_preparation_left_damaged_is_decoded_again(tmp_path, monkeypatch, at_once, kind):
    monkeypatch.setattr(parts, "CHUNK", 2)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    entries, settings = (
        [Entry(f"{i}", tmp_path / "a.png") for i in range(4)],
        Settings(str(tmp_path), 32, "crop", 10**8, words.ANY),
    )
    decoded = []
    pack = parts._packed
    monkeypatch.setattr(parts, "_packed", lambda chunk, told: decoded.append(len(chunk)) or pack(chunk, told))

    def rows() -> list[parts.Row]:
        made = parts.Parts(tmp_path / "parts", entries, settings)
        made.decode(1)
        return [*made]

    whole = rows()
    assert rows() == whole and decoded == [2, 2]
    damage(min((tmp_path / "parts").iterdir()), kind)
    assert rows() == whole and decoded == [2, 2, 2]
