"""The numbers of a run and where they came from: flat names, one JSON file, fingerprints, intervals.

Nothing here imports JAX until `provenance` asks for the devices, so a report can be written anywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from vgjax.config import ConfigError

REQUIRED_PROVENANCE = ("config", "command", "commit", "hardware", "seed")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
PACKAGE_DIR = Path(__file__).resolve().parents[1]


def write_text_atomic(path: Path, text: str) -> None:
    """Writes `text` beside `path` and renames it into place, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; results are meant to be read by others.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_metrics(path: Path, metrics: Mapping[str, float], provenance: Mapping[str, Any]) -> None:
    """Writes one flat JSON object: every metric and every provenance key at the top level.

    Args:
      path: the file to (re)place.
      metrics: flat name -> finite number, such as "control/accuracy_mean": 0.83.
      provenance: at least `REQUIRED_PROVENANCE`; fingerprints as strings under "fingerprint/<stage>".

    Raises:
      ConfigError: a metric is not a finite number, a name is used twice, a provenance key is missing, or a
        provenance value has no JSON form.
    """
    missing = [key for key in REQUIRED_PROVENANCE if key not in provenance]
    if missing:
        raise ConfigError(f"{path}: provenance lacks {', '.join(missing)}; add it before writing the metrics.")
    twice = sorted(set(metrics) & set(provenance))
    if twice:
        raise ConfigError(f"{path}: {', '.join(twice)} is both a metric and a provenance key; rename the metric.")
    for key, value in provenance.items():
        if key.startswith("fingerprint/") and not isinstance(value, str):
            raise ConfigError(f"{path}: '{key}' is {type(value).__name__}; pass the string that fingerprint() returns.")
    numbers = {name: _finite_number(path, name, metrics[name]) for name in sorted(metrics)}
    try:
        text = json.dumps({**numbers, **provenance}, indent=2, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: provenance cannot be written as JSON ({error}); pass plain values.") from error
    write_text_atomic(Path(path), text + "\n")


def _finite_number(path: Path, name: str, value: Any) -> float | int:
    try:
        array = np.asarray(value)
        number = array.item()
    except (TypeError, ValueError):
        number = None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ConfigError(f"{path}: metric '{name}' is not a number ({value!r}); pass one scalar per name.")
    if not math.isfinite(number):
        raise ConfigError(f"{path}: metric '{name}' is {number}; leave out what could not be measured and note why.")
    return number


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def fingerprint(tree: Mapping[str, Any]) -> str:
    """sha256 over the sorted (name, dtype, shape, little-endian bytes) of a nested dict of arrays.

    Names are joined by '/', so a flat and a nested spelling of the same tree agree. Equal fingerprints mean
    bit-equal arrays of equal type and shape under equal names, whatever the order of the dict.

    Raises:
      ConfigError: the tree holds no array, a leaf is no numeric array, or two leaves share a joined name.
    """
    leaves = sorted(_leaves(tree, ()), key=lambda leaf: leaf[0])
    if not leaves:
        raise ConfigError("fingerprint: the tree holds no arrays; pass the parameters that were trained.")
    digest = hashlib.sha256()
    for index, (name, leaf) in enumerate(leaves):
        if index and name == leaves[index - 1][0]:
            raise ConfigError(f"fingerprint: two arrays are called '{name}'; give each its own name.")
        array = np.asarray(leaf)
        if array.dtype.hasobject:
            raise ConfigError(f"fingerprint: '{name}' is {type(leaf).__name__}, not an array; drop or convert it.")
        if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
            array = array.astype(array.dtype.newbyteorder("<"))
        # JSON keeps the fields apart: no two different headers read alike.
        digest.update(json.dumps([name, array.dtype.name, list(array.shape)]).encode() + b"\n")
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _leaves(node: Any, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for name, child in node.items():
            yield from _leaves(child, (*names, str(name)))
    else:
        yield "/".join(names), node


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, seed: int, n: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean (Efron and Tibshirani, 1993, chapter 13).

    Args:
      values: (N,) one value per example, such as 0 or 1 for a wrong or right factor.
      seed: of the resampling; the same seed gives the same interval.
      n: number of resamples.
      level: coverage, in (0, 1).

    Raises:
      ConfigError: no values, a value that is not finite, or `n` or `level` out of range.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ConfigError(f"bootstrap_interval: values have shape {values.shape}; pass one value per example.")
    if not np.isfinite(values).all():
        raise ConfigError("bootstrap_interval: a value is not finite; leave out what could not be measured.")
    if n < 1 or not 0 < level < 1:
        raise ConfigError(f"bootstrap_interval: n={n}, level={level}; n must be positive and level lie in (0, 1).")
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(values.size, size=values.size)].mean() for _ in range(n)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def provenance(seed: int) -> dict[str, Any]:
    """What a reader needs to run this again: command, commit, hardware, device_count, seed, versions.

    The command is `sys.argv` with absolute paths cut down to their last part; the caller adds "config".
    """
    import jax  # only here, so that writing a report needs no accelerator runtime

    devices = jax.devices()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    hardware = f"{len(devices)} x {devices[0].device_kind}; {_cpu()}, {memory_gib:.0f} GiB memory"
    versions = {"python": platform.python_version(), **_versions()}
    return {
        "command": command_line(sys.argv),
        "commit": _commit(PACKAGE_DIR),
        "hardware": hardware,
        "device_count": len(devices),
        "seed": seed,
        "versions": versions,
    }


def command_line(argv: Sequence[str]) -> str:
    """The command as one shell line without the paths of this machine: "/a/b/c" becomes "c"."""
    program, *arguments = argv
    if program.endswith((f"{PACKAGE_DIR.name}/main.py", f"{PACKAGE_DIR.name}/__main__.py")):
        head = ["python", "-m", f"{PACKAGE_DIR.name}.main"]
    else:
        head = [_last_part(program)]
    return shlex.join([*head, *map(_last_part, arguments)])


def _last_part(argument: str) -> str:
    # An absolute path begins the argument or follows '=', ',' or ':'; the second slash of "gs://" does not count.
    return re.sub(r"(^|[=,:])(/(?!/)[^=,:]*)", lambda found: found[1] + Path(found[2]).name, argument)


def _commit(package_dir: Path) -> str:
    """Hash of the commit that the package runs from, "-dirty" where package or configs differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package_dir), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository: only a tracked package has a commit.
        git("ls-files", "--error-unmatch", "__init__.py")
        commit = git("rev-parse", "HEAD")
        return commit + ("-dirty" if git("status", "--porcelain", "--", ".", "../configs") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{found[1].strip() if found else platform.processor() or platform.machine()}, {cores} cores"


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes)."""
    try:
        # getrusage inherits the peak of the process that forked this one; the kernel's high-water mark does not.
        found = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
