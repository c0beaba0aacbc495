"""Which room may import which: data flow one way, and every line has one place to be.

The imports are read from the source, so a forbidden one fails here even where it is never run.
"""

import ast
from collections.abc import Iterator
import importlib.metadata
import pathlib
import re
import statistics
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "medjax"

BASE = {"contract", "settings", "ops", "trees"}
LEVEL_0 = BASE | {"config", "imbalance", "losses", "metrics", "pixels", "augment", "mesh"}
LEVEL_0 |= {"cluster", "command"}
LEVEL_3 = LEVEL_0 | {"objectives.base"}
LEVEL_4 = LEVEL_0 | {"models", "objectives", "checkpoint", "evaluate"}
BELOW_5 = LEVEL_4 | {"data", "optim", "writer", "train", "report", "sampling"}

# Room -> what it may import of medjax, besides itself. A room is a module or a folder.
TABLE = {
  **dict.fromkeys(LEVEL_0, BASE),
  "mesh": BASE | {"cluster"},
  "page": {"figures"},
  "artifact": LEVEL_0,
  "data": LEVEL_0 | {"page"},
  "models": LEVEL_0,
  "optim": LEVEL_0,
  "objectives": LEVEL_0 | {"models", "optim"},
  "writer": LEVEL_3 | {"figures"},
  "checkpoint": LEVEL_3,
  "evaluate": LEVEL_3 | {"views"},
  "sampling": LEVEL_3,
  "train": LEVEL_3 | {"writer", "checkpoint", "evaluate"},
  "cluster": {"lifeline", "place"},
  "fidelity": set(),
  "lifeline": set(),
  "place": set(),
  "lock": set(),
  "figures": LEVEL_0,
  "probes": BASE | {"losses"},
  "phrases": LEVEL_0,
  "study": LEVEL_0 | {"figures"},
  "report": LEVEL_4 | {"figures", "page", "phrases", "study"},
  "classical": BASE,
  "saliency": LEVEL_0 | {"models"},
  "views": LEVEL_0,
  "points": BELOW_5 - {"report"},
  "probing": BELOW_5 - {"report"} | {"views", "wiring"},
  "wiring": BELOW_5 - {"report"} | {"views"},
  "witness": LEVEL_3 | {"writer"},
  "profiling": BASE | {"cluster"},
  "planner": BELOW_5 - {"report"} | {"cluster", "wiring"},
  "trained": BELOW_5 - {"report"} | {"wiring"},
  "chapters": BELOW_5 | {"explain", "figures", "page", "phrases", "probing", "trained"},
  "monitors": BELOW_5 - {"report"} | {"figures", "probes", "wiring"},
  "judge": BELOW_5 - {"report"} | {"fidelity", "trained", "wiring"},
  "stages": BELOW_5 - {"report"}
  | {"figures", "judge", "monitors", "planner", "points", "probing"}
  | {"profiling", "wiring", "witness"},
  "predict": BELOW_5 - {"report"} | {"artifact", "explain", "trained", "views", "wiring"},
  "explain": BELOW_5 - {"report"} | {"page", "predict", "saliency", "trained"},
  "export": BELOW_5 - {"report"} | {"artifact", "trained"},
  "ensemble": BELOW_5 | {"chapters", "compare", "phrases", "stages", "trained", "wiring"},
  "generate": BELOW_5 - {"report"} | {"fidelity", "judge", "trained", "wiring"},
  "compare": LEVEL_4 | {"figures", "page", "phrases", "report", "trained"},
  "runs": BELOW_5
  | {
    "chapters",
    "classical",
    "lock",
    "place",
    "points",
    "stages",
    "study",
    "trained",
    "wiring",
  },
  "main": {"command", "place", "runs"},
  "bench": {"command"},
}
ONE_NAMESPACE = "settings"  # a folder only for its length: its names are those of one module

# Library -> the rooms that may import it.
KEPT_IN = {
  "flax.nnx": set(),  # fails at import on several of the supported pairs of jax and flax
  "tensorflow": set(),  # 1.5 GB, and everything works without it
  "ml_collections": set(),  # for configs/ alone: medjax takes typed settings
  "flax.linen": {"models"},  # the others see `net.Net`, so that the module library can change
  "grain": {"data"},
  "orbax": {"checkpoint"},
  "clu": {"writer", "models"},  # its metric writers; its table of parameters
  "tensorboardX": {"writer"},
}

MAX_LINES = 450
MEDIAN_BODY = 12


def _modules() -> dict[str, pathlib.Path]:
  """Dotted name below medjax -> file; the package itself is ''."""
  paths = sorted(PACKAGE.rglob("*.py"))
  return {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in paths}


MODULES = {re.sub(r"\.?__init__$", "", name): path for name, path in _modules().items()}
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in MODULES.items()}


def _imports(tree: ast.AST) -> Iterator[str]:
  """Full dotted names that a module imports: `from a import b` gives `a.b`."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names)


def _own_imports(name: str) -> list[str]:
  imports = (i for i in _imports(TREES[name]) if re.match(r"medjax\b", i))
  return [i.removeprefix("medjax").removeprefix(".") for i in imports]


def _room(name: str) -> str:
  return name.split(".")[0]


def _within(name: str, prefixes: set[str]) -> bool:
  return any(name == p or name.startswith(p + ".") for p in prefixes)


def _functions() -> Iterator[tuple[str, int]]:
  """Each function's name and the number of lines of its body without the docstring."""
  for module, tree in TREES.items():
    for node in ast.walk(tree):
      if isinstance(node, ast.FunctionDef):
        body = node.body[1:] if ast.get_docstring(node) else node.body
        lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
        yield f"{module}.{node.name}", lines


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_imports_go_down(name):
  assert _room(name) in TABLE, f"medjax/{name} is in no room of the table: add it there"
  allowed = TABLE[_room(name)] | {_room(name)}
  wrong = [i for i in _own_imports(name) if not _within(i, allowed)]
  assert not wrong, f"{name} may import {sorted(allowed)}, and imports {wrong}"


def test_importing_the_package_imports_none_of_its_rooms():
  lines = "import sys, medjax; print([m for m in sys.modules if m in ('jax', 'numpy')])"
  done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", MODULES)
def test_own_modules_are_imported_as_modules(name):
  relative = [i for i in _imports(TREES[name]) if i.startswith(".")]
  assert not relative, f"{name}: write `from medjax...`, not {relative}"
  names = [i for i in _own_imports(name) if i not in MODULES]
  if _room(name) != ONE_NAMESPACE:
    assert not names, f"{name}: import the module that holds {names}, not the name"


@pytest.mark.parametrize("library", KEPT_IN)
def test_library_stays_in_its_room(library):
  users = {n for n, tree in TREES.items() if any(_within(i, {library}) for i in _imports(tree))}
  strangers = {name for name in users if _room(name) not in KEPT_IN[library]}
  assert not strangers, f"{library} belongs in {KEPT_IN[library] or 'no room'}: {strangers}"


def test_modules_import_each_other_in_no_circle():
  below = {name: {i for i in _own_imports(name) if i in MODULES} for name in MODULES}
  while free := {name for name, targets in below.items() if not targets}:
    below = {name: targets - free for name, targets in below.items() if name not in free}
  assert not below, f"a circle of imports runs through {sorted(below)}"


# pydicom finds these by itself, to decode what they can; and jax.export the last, for its files.
PLUG_INS = {"python-gdcm", "pyjpegls", "pylibjpeg", "pylibjpeg-openjpeg", "flatbuffers"}


def test_dependencies_are_what_is_imported():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  declared = {re.match(r"[\w-]+", line)[0].lower() for line in project["dependencies"]}
  configs = [ast.parse(path.read_text()) for path in (ROOT / "configs").rglob("*.py")]
  top = {_room(i) for tree in [*TREES.values(), *configs] for i in _imports(tree)}
  libraries = top - set(sys.stdlib_module_names) - {"medjax", "configs"}
  sources = importlib.metadata.packages_distributions()
  used = {dist for library in libraries for dist in sources.get(library, [library])}
  assert {dist.lower().replace("_", "-") for dist in used} == declared - PLUG_INS


def test_every_file_has_a_noun():
  vague = {"utils", "util", "helpers", "common", "misc", "tools"}
  assert not [name for name in MODULES if vague & set(name.split("."))]


def test_files_are_short():
  lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
  long = {name: n for name, n in lines.items() if n > MAX_LINES}
  assert not long, f"which two nouns live in {long}?"


def test_functions_are_short():
  lengths = dict(_functions())
  longest = sorted(lengths, key=lengths.get)[-5:]
  median = statistics.median(lengths.values())
  assert median < MEDIAN_BODY, f"median {median} lines; the longest are {longest}"


def test_everything_imports_without_tensorflow():
  names = [f"medjax.{name}".rstrip(".") for name in MODULES]
  lines = ["import importlib, sys"]
  lines += [f"importlib.import_module({name!r})" for name in names]
  lines += ["assert 'tensorflow' not in sys.modules"]
  done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
