"""Commands run inside this process: exit code, what they print, and what they leave."""

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from absl import flags

from vgjax import main

PHANTOM = "--config=configs/phantom.py:smoke"


class Outcome(NamedTuple):
    """Of a command."""

    code: int
    out: str
    lines: list[str]  # of stderr


@contextlib.contextmanager
def fresh_flags() -> Iterator[None]:
    """Flags as a new process has them; logging, paths and hooks as they were afterwards."""
    logger, hook, path = logging.getLogger(), sys.unraisablehook, list(sys.path)
    handlers, level, cache = list(logger.handlers), logger.level, jax.config.jax_compilation_cache_dir
    for name in [name for name in flags.FLAGS if name == "config" or name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    sys.modules.pop("config_config", None)  # the last config file, into which the next one would be read
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)  # of config_flags
            yield
    finally:
        logger.handlers[:], sys.unraisablehook, sys.path[:] = handlers, hook, path
        logger.setLevel(level)
        jax.config.update("jax_compilation_cache_dir", cache)
        flags.FLAGS.mark_as_parsed()


def run(*arguments: str, entry: Callable[[list[str]], int] = main.main, program: Sequence[str] = ("vgjax",)) -> Outcome:
    """An entry point with these arguments."""
    out, err = io.StringIO(), io.StringIO()
    with fresh_flags(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = entry([*program, *arguments])
    return Outcome(code, out.getvalue(), err.getvalue().splitlines())


def tree(folder: Path) -> dict[str, int]:
    """What lies below a folder, with the time of its last change."""
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def refused(folder: Path, match: str, *arguments: str, silent: bool = True, untouched: bool = True) -> str:
    """One sentence on stderr that holds `match`, and nothing made below `folder`; returns the sentence.

    Args:
      silent: nothing else is said: the check came before any work.
      untouched: nothing below `folder` changes.
    """
    before = tree(folder)
    found = run(*arguments)
    errors = [line for line in found.lines if line.startswith("error: ")]
    assert (found.code, len(errors)) == (2, 1), found
    assert not any("Traceback" in line for line in found.lines), found
    assert match in errors[0] and errors[0] == found.lines[-1], found
    if silent:
        assert found.lines == errors and found.out == "", found
    assert tree(folder) == before or not untouched
    return errors[0]
