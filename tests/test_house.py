"""The house rules: imports point one way, files and functions stay short, nothing private, unsafe or machine-bound."""

import ast
import configparser
import contextlib
import graphlib
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPO = Path(__file__).resolve().parent.parent
PACKAGE = REPO / "vgjax"

# Package or module of vgjax -> what it may import. Modules of one package may import one another, without a cycle.
FOUNDATION = {"types", "keys", "compatibility", "config", "recipes", "atomic", "seeds", "boundary"}
NETWORKS = {"models", "diffusion", "losses"}
GENERIC = {"state", "optim", "parallel", "checkpoint", "provenance"}
METHOD = {"build", "pipeline", "context", "features", "conditions"}
OUTER = {"train", "capacity", "sample", "evaluation", "artefacts", "run", "export"}
MAY_IMPORT: dict[str, set[str]] = {
    "": set(),  # vgjax/__init__.py: importing the package costs nothing
    **dict.fromkeys(FOUNDATION, FOUNDATION),
    **dict.fromkeys(NETWORKS, FOUNDATION | {"models", "losses"}),
    "weights": FOUNDATION | NETWORKS,
    "text": FOUNDATION | {"models", "weights"},
    "store": FOUNDATION,
    **dict.fromkeys(GENERIC, FOUNDATION | GENERIC | {"store"}),
    "build": FOUNDATION | NETWORKS | {"weights"},
    "pipeline": FOUNDATION | NETWORKS | {"build"},
    "context": FOUNDATION | {"data", "checkpoint", "parallel", "store"},
    "data": FOUNDATION | {"context", "store"},
    "features": FOUNDATION | NETWORKS | {"checkpoint", "data", "text", "build", "pipeline", "context"},
    "conditions": FOUNDATION | NETWORKS | {"data", "text", "weights", "build", "pipeline"},
    "stages": FOUNDATION | NETWORKS | METHOD | {"checkpoint", "data", "weights"},
    **dict.fromkeys(
        OUTER, FOUNDATION | NETWORKS | METHOD | GENERIC | OUTER | {"data", "store", "stages", "text", "weights"}
    ),
    "main": FOUNDATION | {"parallel", "run"},
}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
DRAWERS = {"utils", "util", "helpers", "misc", "common"}
UNPICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
MACHINE_BOUND = re.compile(r"(?<![\w.~-])/(?:work|root)/|file:/{3}|-{2}(?:extra-)?index-url|-{2}find-links")


def module_name(path: Path, root: Path) -> str:
    """Dotted name of a module: root/vgjax/data/stream.py -> vgjax.data.stream."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_of(package: Path) -> dict[str, ast.Module]:
    """Syntax trees of a package's modules by dotted name."""
    return {
        module_name(path, package.parent): ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        for path in sorted(package.rglob("*.py"))
    }


def imports_of(name: str, tree: ast.Module, modules: set[str], packages: set[str]) -> set[str]:
    """Absolute names that a module imports anywhere, lazily too; our submodules are named, not their package."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = name.split(".") if name in packages else name.split(".")[:-1]
                base = ".".join([*here[: len(here) - node.level + 1], *([node.module] if node.module else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {full if full in modules else base for full in names}
    return found


def import_graph(package: Path) -> dict[str, set[str]]:
    """Module of the package -> everything it imports."""
    trees = modules_of(package)
    packages = {module_name(path, package.parent) for path in package.rglob("__init__.py")}
    return {name: imports_of(name, tree, set(trees), packages) for name, tree in trees.items()}


def room(module: str) -> str:
    """vgjax.data.sources.busi -> data; vgjax itself -> the empty name."""
    return [*module.split("."), ""][1]


def direction_errors(graph: dict[str, set[str]]) -> list[str]:
    """What in an import graph of vgjax breaks the table or runs in a circle."""
    errors = []
    for module, imported in sorted(graph.items()):
        if room(module) not in MAY_IMPORT:
            errors.append(f"{module} has no place in MAY_IMPORT: add it to the table, beside its peers")
            continue
        for target in sorted(name for name in imported if name.split(".")[0] == "vgjax"):
            if room(target) != room(module) and room(target) not in MAY_IMPORT[room(module)]:
                errors.append(f"{module} imports {target}, against the direction of the house")
    inside = {module: {t for t in imported if t in graph and t != module} for module, imported in graph.items()}
    try:
        graphlib.TopologicalSorter(inside).prepare()
    except graphlib.CycleError as error:
        errors.append("imports run in a circle: " + " <- ".join(error.args[1]))
    return errors


def dotted(node: ast.AST) -> str:
    """Source name of a chain of attributes, a.b.c; the empty string for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def unsafe_loads(tree: ast.Module) -> list[str]:
    """Calls that would run what a data file says: unpickling, or allow_pickle that is not literally False."""
    errors = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in UNPICKLERS:
            errors.append(f"line {node.lineno}: from {node.module}")
        if isinstance(node, ast.ClassDef) and any(dotted(base).endswith("Unpickler") for base in node.bases):
            errors.append(f"line {node.lineno}: class {node.name}")
        if not isinstance(node, ast.Call):
            continue
        head, _, last = dotted(node.func).rpartition(".")
        if head in UNPICKLERS and last in {"load", "loads", "open"}:
            errors.append(f"line {node.lineno}: {head}.{last}")
        for keyword in node.keywords:
            if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False":
                errors.append(f"line {node.lineno}: allow_pickle")
    return errors


def long_functions(tree: ast.Module) -> list[str]:
    """Functions longer than the house allows, docstring included."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = [(node, (node.end_lineno or 0) - node.lineno + 1) for node in functions]
    return [f"{f.name} (line {f.lineno}): {lines} lines" for f, lines in lengths if lines > MAX_FUNCTION_LINES]


def requirements(path: Path) -> list[Requirement]:
    """Requirements of a file, comments and options left out."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]


def undeclared(graph: dict[str, set[str]], declared: set[str]) -> list[str]:
    """Third-party imports whose distribution is not declared."""
    providers = importlib.metadata.packages_distributions()
    errors = []
    for module, imported in sorted(graph.items()):
        for top in sorted({name.split(".")[0] for name in imported} - sys.stdlib_module_names - {"vgjax", "configs"}):
            if not {canonicalize_name(name) for name in providers.get(top, [])} & declared:
                errors.append(f"{module} imports {top}, which requirements.txt does not declare")
    return errors


def committed_texts() -> Iterator[tuple[Path, str]]:
    """Text files of the project but this one, which names what it forbids; caches, environments and runs are none."""
    ignored = re.compile(r"\.git|\.venv|\.cache|\.vgl|runs|data|build|dist|.*\.egg-info|.*_cache")
    for top in (top for top in REPO.iterdir() if not ignored.fullmatch(top.name)):
        for path in top.rglob("*") if top.is_dir() else [top]:
            if path.is_file() and path != Path(__file__).resolve():
                with contextlib.suppress(UnicodeDecodeError, FileNotFoundError):
                    yield path, path.read_text(encoding="utf-8")


def shell_scripts() -> list[Path]:
    """Every shell script of the repository."""
    return [REPO / ".ci" / "run", *sorted((REPO / "launch").glob("*.sh")), *sorted((REPO / "launch").glob("*.sbatch"))]


def test_imports_point_one_way():
    assert direction_errors(import_graph(PACKAGE)) == []


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"models/dit.py": "from vgjax import train"}, "vgjax.models.dit imports vgjax.train"),
        ({"config.py": "def f():\n  from .data import stream"}, "vgjax.config imports vgjax.data.stream"),
        ({"pipeline.py": "import vgjax.stages.prior"}, "vgjax.pipeline imports vgjax.stages.prior"),
        ({"models/dit.py": "import vgjax.weights"}, "vgjax.models.dit imports vgjax.weights"),
        ({"attic.py": ""}, "vgjax.attic has no place"),
        ({"losses.py": "from vgjax.models import dit", "models/dit.py": "from .. import losses"}, "circle"),
        ({"stages/prior.py": "from vgjax import pipeline, types", "train.py": "from vgjax.stages import prior"}, None),
    ],
)
def test_a_wrong_import_is_seen(tmp_path, files, complaint):
    package = tmp_path / "vgjax"
    for name in ("", "models", "data", "stages"):
        (package / name).mkdir()
        (package / name / "__init__.py").touch()
    for name in ("train.py", "losses.py", "pipeline.py", "types.py", "data/stream.py", "stages/prior.py"):
        (package / name).touch()
    for name, source in files.items():
        (package / name).write_text(source)
    errors = direction_errors(import_graph(package))
    assert (len(errors) == 1 and complaint in errors[0]) if complaint else errors == []


def test_files_and_functions_stay_short():
    errors = []
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        where = path.relative_to(REPO)
        if (lines := len(source.splitlines())) > MAX_FILE_LINES:
            errors.append(f"{where}: {lines} lines")
        errors += [f"{where}: {error}" for error in long_functions(ast.parse(source))]
    assert errors == []


def test_a_long_function_is_seen():
    body = "    x = 1\n"
    assert long_functions(ast.parse("def f():\n" + body * (MAX_FUNCTION_LINES - 1))) == []
    assert long_functions(ast.parse("class A:\n  def f(self):\n" + body * MAX_FUNCTION_LINES)) == [
        "f (line 2): 61 lines"
    ]


def test_there_are_no_drawers():
    assert [path for path in PACKAGE.rglob("*.py") if path.stem in DRAWERS] == []


def test_no_private_jax():
    private = re.compile(r"\bjax\._[a-z]|\bfrom jax import _")
    assert [str(path) for path, text in committed_texts() if path.suffix == ".py" and private.search(text)] == []


def test_nothing_unpickles():
    modules = {**modules_of(REPO / "vgjax"), **modules_of(REPO / "configs")}
    # The one reader of torch's files knows the few names that it lets through (tests/test_weights_read.py).
    assert {n for n, tree in modules.items() if unsafe_loads(tree)} == {"vgjax.weights.pth"}


@pytest.mark.parametrize(
    ("source", "unsafe"),
    [
        ("pickle.load(f)", True),
        ("from pickle import loads", True),
        ("class Reader(pickle.Unpickler): pass", True),
        ("joblib.load(f)", True),
        ("np.load(f, allow_pickle=True)", True),
        ("np.load(f, allow_pickle=flag)", True),
        ("np.load(f, allow_pickle=False)", False),
        ("json.load(f)", False),
    ],
)
def test_an_unsafe_load_is_seen(source, unsafe):
    assert bool(unsafe_loads(ast.parse(source))) == unsafe


@pytest.mark.parametrize("script", shell_scripts(), ids=lambda path: path.name)
def test_shell_script_parses_and_is_strict(script):
    checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    sourced = script.name.startswith("_")
    assert sourced or "set -euo pipefail" in script.read_text(encoding="utf-8")


def test_every_import_is_declared():
    setup = configparser.ConfigParser()
    setup.read(REPO / "setup.cfg")
    extras = [Requirement(line) for line in setup["options.extras_require"].values()]
    declared = {canonicalize_name(one.name) for one in [*requirements(REPO / "requirements.txt"), *extras]}
    assert undeclared(import_graph(PACKAGE), declared) == []
    assert ["sklearn" in fault for fault in undeclared({"m": {"PIL.Image", "sklearn"}}, {"pillow"})] == [True]


def applies(requirement: Requirement, python: str = platform.python_version()) -> bool:
    """Whether a requirement's marker holds for a Python, on this platform."""
    version = {"python_full_version": python, "python_version": ".".join(python.split(".")[:2])}
    return requirement.marker is None or requirement.marker.evaluate(version)


def misfits(wanted: list[Requirement], lock: list[Requirement], python: str) -> list[str]:
    """Requirements that the pins for a Python do not meet, and packages pinned twice for it."""
    errors, pins = [], {}
    for pin in (pin for pin in lock if applies(pin, python)):
        name = canonicalize_name(pin.name)
        if not re.fullmatch(r"==[\w.]+", str(pin.specifier)) or name in pins:
            errors.append(f"{pin} is no pin, or a second one, for Python {python}")
        pins[name] = str(pin.specifier).removeprefix("==")
    for requirement in wanted:
        pin = pins.get(canonicalize_name(requirement.name))
        if pin is None or not requirement.specifier.contains(pin):
            errors.append(f"{requirement} against {pin} in constraints.txt for Python {python}")
    return errors


def supported_pythons() -> list[str]:
    """The versions in setup.cfg's classifiers, as the first release of each."""
    setup = configparser.ConfigParser()
    setup.read(REPO / "setup.cfg")
    return [f"{minor}.0" for minor in re.findall(r"Python :: (3\.\d+)", setup["metadata"]["classifiers"])]


def test_requirements_are_installed_and_pinned_to_a_version_that_meets_the_floor():
    wanted = [*requirements(REPO / "requirements.txt"), *requirements(REPO / "requirements-dev.txt")]
    lock = requirements(REPO / "constraints.txt")
    assert [error for python in supported_pythons() for error in misfits(wanted, lock, python)] == []
    for requirement in filter(applies, wanted):
        installed = importlib.metadata.version(requirement.name)
        assert requirement.specifier.contains(installed), f"{requirement} against {installed} installed"


def test_python_is_one_of_the_supported():
    assert ".".join(platform.python_version_tuple()[:2]) + ".0" in supported_pythons()


@pytest.mark.parametrize(
    ("lock", "complaint"),
    [
        (["jax==0.10.2 ; python_full_version < '3.12'", "jax==0.12 ; python_full_version >= '3.12'"], None),
        (["jax==0.10.2 ; python_full_version < '3.12'", "jax==0.12 ; python_full_version >= '3.11'"], "a second one"),
        (["jax==0.10.2 ; python_full_version >= '3.12'"], "jax>=0.10 against None"),
        (["jax==0.9 ; python_full_version < '3.12'"], "against 0.9"),
        (["jax>=0.10"], "is no pin"),
    ],
)
def test_a_pin_that_does_not_fit_is_seen(lock, complaint):
    errors = misfits([Requirement("jax>=0.10")], [Requirement(line) for line in lock], "3.11.7")
    assert any(complaint in error for error in errors) if complaint else errors == []


def test_changelog_names_the_version():
    config = configparser.ConfigParser()
    config.read(REPO / "setup.cfg", encoding="utf-8")
    changelog = (REPO / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"(?<![\w.]){re.escape(config['metadata']['version'])}(?!\.?\w)", changelog)


def test_every_promise_of_security_names_tests_that_are_there():
    rows = re.findall(r"^\| (?!Promise).*\|$", (REPO / "SECURITY.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows
    for row in rows:
        named = re.findall(r"`(tests/\w+\.py)`", row)
        assert named and all((REPO / name).is_file() for name in named), row


def test_nothing_is_bound_to_a_machine():
    errors = [
        f"{path.relative_to(REPO)}:{number}: {line.strip()[:100]}"
        for path, text in committed_texts()
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE_BOUND.search(line)
    ]
    assert errors == []


@pytest.mark.parametrize(
    ("line", "bound"),
    [
        ("open('/work/x')", True),
        ("source=/root/.cache", True),
        ("numpy @ file:///wheels/numpy.whl", True),
        ("pip install --extra-index-url x", True),
        ("https://example.org/work/x", False),
        ("a/root/b", False),
    ],
)
def test_a_machine_path_is_seen(line, bound):
    assert bool(MACHINE_BOUND.search(line)) == bound


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of the launch scripts whose .venv holds a stand-in Python that only writes down its arguments."""
    root = tmp_path / "check out"  # a blank in the path has broken many a script
    shutil.copytree(REPO / "launch", root / "launch")
    for name in ("requirements.txt", "requirements-dev.txt", "constraints.txt"):
        shutil.copy(REPO / name, root)
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/usr/bin/env bash\nIFS='|'; echo \"$*\" >>'{root}/calls'\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return root


def calls(checkout: Path, script: str, *arguments: str) -> list[str]:
    """What the stand-in Python was called with, version questions left out; the script starts in another folder."""
    (checkout / "calls").unlink(missing_ok=True)
    subprocess.run(["bash", checkout / "launch" / script, *arguments], cwd="/", check=True, capture_output=True)
    lines = (checkout / "calls").read_text().splitlines()
    return [line for line in lines if not line.startswith("-c|") and line != "-m|pip|--version"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "--config=configs/phantom.py|--workdir=runs/phantom"),
        (("--mode=train",), "--config=configs/phantom.py|--workdir=runs/phantom|--mode=train"),
        (("--config.seed=1",), "--config=configs/phantom.py|--workdir=runs/phantom|--config.seed=1"),
        (("--workdir=a b",), "--config=configs/phantom.py|--workdir=a b"),
        (("--config=configs/busi.py",), "--config=configs/busi.py"),
        (("--config", "configs/busi.py", "--mode=run"), "--config|configs/busi.py|--mode=run"),
    ],
)
def test_local_fills_in_the_phantom(checkout, arguments, expected):
    assert calls(checkout, "local.sh", *arguments)[-1] == f"-m|vgjax.main|{expected}"


def test_xla_knows_the_flags_that_local_sets(checkout):
    python = checkout / ".venv" / "bin" / "python"
    python.write_text(f"#!/usr/bin/env bash\nprintf %s \"$XLA_FLAGS\" >'{checkout}/flags'\n")
    unset = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run(["bash", checkout / "launch" / "local.sh"], env=unset, check=True, capture_output=True)
    environment = {**unset, "XLA_FLAGS": (checkout / "flags").read_text(), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import jax; print(jax.device_count())"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "2\n"), ran.stderr


def test_the_package_is_installed_once_per_requirements(checkout):
    def installs(script: str) -> list[str]:
        return [call for call in calls(checkout, script) if call.startswith("-m|pip|install")]

    assert [call.endswith("-c|constraints.txt|-r|requirements.txt|-e|.") for call in installs("local.sh")] == [True]
    assert installs("local.sh") == []
    assert [call.endswith("-r|requirements-dev.txt|-e|.") for call in installs("test.sh")] == [True]
    (checkout / ".venv" / "installed-requirements.txt").unlink()
    assert installs("local.sh") == []  # the development set holds the run-time set
    with (checkout / "constraints.txt").open("a") as file:
        file.write("attrs==1.0\n")
    assert len(installs("local.sh")) == 1


def test_an_old_python_is_refused_in_one_sentence(checkout):
    shutil.rmtree(checkout / ".venv")
    old = checkout / "python3"
    old.write_text('#!/usr/bin/env bash\n[[ $1 == --version ]] && echo "Python 3.8.1"\nexit 1\n')
    old.chmod(0o755)
    refused = subprocess.run(
        ["bash", checkout / "launch" / "local.sh"],
        env={**os.environ, "PYTHON": str(old)},
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 1
    assert "vgjax needs Python 3.11 or later" in refused.stderr and "Python 3.8.1" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not (checkout / ".venv").exists()


def test_tests_run_on_eight_devices_with_strict_ranks():
    assert jax.config.jax_numpy_rank_promotion == "raise"
    with pytest.raises(ValueError, match="jax_numpy_rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)
    assert jax.default_backend() != "cpu" or jax.device_count() == 8


def test_the_network_is_refused_and_this_machine_is_not():
    with socket.socket() as client, pytest.raises(RuntimeError, match="without a network"):
        client.connect(("192.0.2.1", 80))
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        client.connect(server.getsockname())
