"""Fingerprints and provenance."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from vgjax import provenance
from vgjax.evaluation.metrics import numbers as metrics
from vgjax.provenance import command_line, fingerprint


def test_fingerprint_is_pinned_and_ignores_order_and_nesting():
    tree = {"b": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, "a": np.ones(2, np.int32)}
    # Pinned: a fingerprint written today must be comparable with one of next year.
    assert fingerprint(tree) == "926c2c256f3ab3367ee53f5d54c38c1e117deefcb6c498b29949ffdd470f2959"
    assert fingerprint({"a": tree["a"], "b/w": tree["b"]["w"]}) == fingerprint(tree)
    assert fingerprint({"a": tree["a"], "b": {"w": tree["b"]["w"].astype(">f4")}}) == fingerprint(tree)
    assert fingerprint({"a": tree["a"], "b": {"w": np.asfortranarray(tree["b"]["w"])}}) == fingerprint(tree)


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
    assert fingerprint(other) != fingerprint({"w": np.ones(4, np.float32)})


def test_fingerprint_tells_same_size_types_apart():
    bits = np.arange(4, dtype=np.uint16)
    prints = {fingerprint({"w": bits.view(kind)}) for kind in (np.uint16, np.float16, ml_dtypes.bfloat16)}
    assert len(prints) == 3


@pytest.mark.parametrize("tree", [{}, {"w": None}, {"a/b": np.ones(1), "a": {"b": np.ones(1)}}])
def test_fingerprint_refuses_what_is_no_tree_of_arrays(tree):
    with pytest.raises(ValueError, match="fingerprint"):
        fingerprint(tree)


def test_command_line_names_no_machine_path():
    program = str(provenance.PACKAGE_DIR / "main.py")
    line = command_line([program, "--config=configs/phantom.py", "--workdir=/home/me/runs/a", "/data/x", "b c"])
    assert line == "python -m vgjax.main --config=configs/phantom.py --workdir=a x 'b c'"
    assert command_line(["/opt/bin/tool", "gs://bucket/run", "--a=/x/y,/z/w"]) == "tool gs://bucket/run --a=y,w"


def test_provenance_says_what_a_rerun_needs(tmp_path):
    told = provenance.provenance(seed=7)
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
    assert provenance._commit(package) == "unknown"

    def git(*arguments):
        return subprocess.run(["git", "-C", tmp_path, *arguments], check=True, capture_output=True, text=True).stdout

    git("init")
    git("commit", "--allow-empty", "-m", "before the package")
    assert provenance._commit(package) == "unknown"
    git("add", ".")
    git("commit", "-m", "the package")
    head = git("rev-parse", "HEAD").strip()
    (tmp_path / "output.txt").write_text("a result beside the package does not make it dirty")
    assert provenance._commit(package) == head
    (package / "new.py").write_text("")
    assert provenance._commit(package) == f"{head}-dirty"


def test_peak_memory_grows_with_what_was_held():
    program = (
        "import numpy as np; from vgjax.provenance import peak_rss_mb;"
        "before = peak_rss_mb(); held = np.ones(10_000_000); del held; grown = peak_rss_mb() - before;"
        "assert 75 < grown < 95, grown"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=provenance.PACKAGE_DIR.parent)
