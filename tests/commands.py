"""A command line in this process: what a shell would get of it, in a fraction of the time that it takes to start."""

import contextlib
import io
import logging
import sys
import warnings
from typing import NamedTuple

import jax
import pytest
from absl import flags

from vgjax import main


class Outcome(NamedTuple):
    """Of a command."""

    code: int
    out: str
    lines: list[str]  # of stderr


def run(*arguments: str) -> Outcome:
    """`python -m vgjax.main` with these arguments; whatever it raises passes through."""
    for name in list(flags.FLAGS):  # what the last call left
        if name.startswith("config."):
            delattr(flags.FLAGS, name)
        else:
            flags.FLAGS[name].unparse()
    errors, output, root = io.StringIO(), io.StringIO(), logging.getLogger()
    handlers, level, cache = root.handlers[:], root.level, jax.config.jax_compilation_cache_dir
    try:
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)  # of ml_collections
            patch.setattr(sys, "argv", ["vgjax", *arguments])
            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(output):
                code = main.main(["vgjax", *arguments])
    finally:
        root.handlers[:], root.level = handlers, level
        jax.config.update("jax_compilation_cache_dir", cache)
        flags.FLAGS.mark_as_parsed()
    return Outcome(code, output.getvalue(), errors.getvalue().splitlines())
