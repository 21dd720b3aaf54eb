"""Metrics file, fingerprints, intervals and provenance."""

from __future__ import annotations

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from vgjax.config import ConfigError
from vgjax.evaluation import metrics

RUN = {
    "config": {"data.name": "phantom", "widths": (8, 16), "rate": np.float32(0.5)},
    "command": "python -m vgjax.main --mode=run",
    "commit": "0" * 40,
    "hardware": "1 x cpu",
    "seed": 0,
    "fingerprint/prior": "ab" * 32,
}


def test_metrics_are_flat_numbers_beside_their_provenance(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    metrics.write_metrics(path, {"control/accuracy_mean": np.float32(0.25), "control/n": 64}, RUN)
    read = json.loads(path.read_text())
    assert read["control/accuracy_mean"] == 0.25 and read["control/n"] == 64
    assert read["fingerprint/prior"] == "ab" * 32 and read["seed"] == 0
    assert read["config"] == {"data.name": "phantom", "widths": [8, 16], "rate": 0.5}
    assert set(read) == {"control/accuracy_mean", "control/n", *RUN}


@pytest.mark.parametrize(
    ("values", "told", "message"),
    [
        ({"fid": float("nan")}, RUN, "'fid' is nan"),
        ({"fid": np.float32("inf")}, RUN, "'fid' is inf"),
        ({"fid": "low"}, RUN, "'fid' is not a number"),
        ({"fid": True}, RUN, "'fid' is not a number"),
        ({"fid": np.zeros(2)}, RUN, "'fid' is not a number"),
        ({"seed": 1.0}, RUN, "seed is both"),
        ({}, {**RUN, "fingerprint/prior": 3.0}, "fingerprint/prior"),
        ({}, {**RUN, "config": {"rate": float("nan")}}, "cannot be written as JSON"),
        ({}, {**RUN, "config": {"key": object()}}, "cannot be written as JSON"),
        ({}, {key: value for key, value in RUN.items() if key != "commit"}, "lacks commit"),
    ],
)
def test_refused_metrics_leave_the_old_file(tmp_path, values, told, message):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with pytest.raises(ConfigError, match=message):
        metrics.write_metrics(path, values, told)
    assert path.read_text() == "old"


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    path.write_text("old")

    def broken(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(metrics.os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        metrics.write_text_atomic(path, "new")
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"] and path.read_text() == "old"


def test_fingerprint_is_pinned_and_ignores_order_and_nesting():
    tree = {"b": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, "a": np.ones(2, np.int32)}
    # Pinned: a fingerprint written today must be comparable with one of next year.
    assert metrics.fingerprint(tree) == "926c2c256f3ab3367ee53f5d54c38c1e117deefcb6c498b29949ffdd470f2959"
    assert metrics.fingerprint({"a": tree["a"], "b/w": tree["b"]["w"]}) == metrics.fingerprint(tree)
    assert metrics.fingerprint({"a": tree["a"], "b": {"w": tree["b"]["w"].astype(">f4")}}) == metrics.fingerprint(tree)
    assert metrics.fingerprint({"a": tree["a"], "b": {"w": np.asfortranarray(tree["b"]["w"])}}) == metrics.fingerprint(
        tree
    )


@pytest.mark.parametrize(
    "other",
    [
        {"w": np.nextafter(np.ones(4, np.float32), 2)},
        {"w": np.ones((2, 2), np.float32)},
        {"w": np.ones(4, np.float32).view(np.int32)},
        {"w": np.ones(4, ml_dtypes.bfloat16)},
        {"v": np.ones(4, np.float32)},
        {"w": np.ones(4, np.float32), "x": np.zeros(0, np.float32)},
    ],
)
def test_fingerprint_sees_bits_shape_type_and_name(other):
    assert metrics.fingerprint(other) != metrics.fingerprint({"w": np.ones(4, np.float32)})


def test_fingerprint_tells_same_size_types_apart():
    bits = np.arange(4, dtype=np.uint16)
    prints = {metrics.fingerprint({"w": bits.view(kind)}) for kind in (np.uint16, np.float16, ml_dtypes.bfloat16)}
    assert len(prints) == 3


@pytest.mark.parametrize("tree", [{}, {"w": None}, {"a/b": np.ones(1), "a": {"b": np.ones(1)}}])
def test_fingerprint_refuses_what_is_no_tree_of_arrays(tree):
    with pytest.raises(ConfigError, match="fingerprint"):
        metrics.fingerprint(tree)


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    draws = generator.random((150, 40)) < 0.7
    intervals = [metrics.bootstrap_interval(draw, seed=index, n=150, level=0.8) for index, draw in enumerate(draws)]
    covered = np.mean([low <= 0.7 <= high for low, high in intervals])
    assert 0.7 < covered < 0.9
    wide = metrics.bootstrap_interval(draws[0], seed=3, level=0.99)
    narrow = metrics.bootstrap_interval(draws[0], seed=3, level=0.5)
    assert wide[0] < narrow[0] <= narrow[1] < wide[1]
    assert metrics.bootstrap_interval(draws[0], seed=3) == metrics.bootstrap_interval(draws[0], seed=3)
    assert metrics.bootstrap_interval(np.ones(5), seed=0) == (1.0, 1.0)


@pytest.mark.parametrize(("values", "level"), [([], 0.9), ([1.0, np.nan], 0.9), ([1.0], 1.0), (np.ones((2, 2)), 0.9)])
def test_bootstrap_interval_refuses(values, level):
    with pytest.raises(ConfigError, match="bootstrap_interval"):
        metrics.bootstrap_interval(values, seed=0, level=level)


def test_command_line_names_no_machine_path():
    program = str(metrics.PACKAGE_DIR / "main.py")
    line = metrics.command_line([program, "--config=configs/phantom.py", "--workdir=/home/me/runs/a", "/data/x", "b c"])
    assert line == "python -m vgjax.main --config=configs/phantom.py --workdir=a x 'b c'"
    assert metrics.command_line(["/opt/bin/tool", "gs://bucket/run", "--a=/x/y,/z/w"]) == "tool gs://bucket/run --a=y,w"


def test_provenance_says_what_a_rerun_needs(tmp_path):
    told = metrics.provenance(seed=7)
    assert told["seed"] == 7 and told["device_count"] >= 1
    assert told["hardware"].startswith(f"{told['device_count']} x ") and "cores" in told["hardware"]
    assert {"python", "jax", "flax", "numpy"} <= set(told["versions"])
    metrics.write_metrics(tmp_path / "m.json", {}, {**told, "config": {}})


def test_commit_tells_clean_dirty_and_foreign_apart(tmp_path, monkeypatch):
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "test")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "test@example.org")
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert metrics._commit(package) == "unknown"

    def git(*arguments):
        return subprocess.run(["git", "-C", tmp_path, *arguments], check=True, capture_output=True, text=True).stdout

    git("init")
    git("commit", "--allow-empty", "-m", "before the package")
    assert metrics._commit(package) == "unknown"
    git("add", ".")
    git("commit", "-m", "the package")
    head = git("rev-parse", "HEAD").strip()
    (tmp_path / "output.txt").write_text("a result beside the package does not make it dirty")
    assert metrics._commit(package) == head
    (package / "new.py").write_text("")
    assert metrics._commit(package) == f"{head}-dirty"


def test_peak_memory_grows_with_what_was_held():
    program = (
        "import numpy as np; from vgjax.evaluation.metrics import peak_rss_mb;"
        "before = peak_rss_mb(); held = np.ones(10_000_000); del held; grown = peak_rss_mb() - before;"
        "assert 75 < grown < 95, grown"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=metrics.PACKAGE_DIR.parent)
