"""The house: which module may import which, how long it may be, and where a role's name may stand."""

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "ccpo"
# From the ground up: a room imports from itself and from those before it.
ROOMS = (
    ("calls", "cells", "data", "exits", "quiet", "shipped"),
    ("credit",),
    ("team",),
    ("verifier",),
    ("generation",),
    ("ratings", "rewards"),
    ("evaluation", "report", "serving"),
    ("training",),
    ("arguments", "parsing", "tasks"),
    ("train",),
    ("__main__", "cli"),
)
LEAVES = ("ccpo.calls", "ccpo.cells", "ccpo.exits", "ccpo.quiet")
SHIMS = ("ccpo.config", "ccpo.checks", "ccpo.prompts")  # old import paths
LINES = 350

NAMES = re.compile(r"thinkers?|solvers?", re.IGNORECASE)
# What may know a role by name: whole modules, or a function, a class or a variable of one.
NAMED = (
    "ccpo.team",
    "ccpo.tasks",
    "ccpo.prompts",
    # defined for two roles
    "ccpo.credit.shared.shared_credit",
    "ccpo.credit.counterfactual.counterfactual_credit",
    "ccpo.credit.counterfactual.solo_baseline",
    "ccpo.credit.self_evaluated.self_evaluated_credit",
    "ccpo.credit.history.HistoryNormalizer.think_solve",
    "ccpo.ratings.prompts",
    "ccpo.rewards.self_evaluated.SelfEvaluatedCredit",  # its argument `thinker_rater`, of a team under TRL's trainer
)


@dataclass(frozen=True)
class Import:
    """Module `source` imports `target`, a module, in a line."""

    source: str
    target: str
    line: int


def modules(package: Path) -> dict[str, Path]:
    """Name -> file of every module of a package."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def parse(source: str) -> ast.Module:
    return ast.parse(source)


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[Import]:
    """What a module imports of its package: at its top, in functions, and for types alone."""
    top = name.split(".")[0]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            targets = [f"{source}.{alias.name}" for alias in node.names]
            targets = [target if target in known else source for target in targets]
        else:
            continue
        for target in targets:
            if target.split(".")[0] == top:
                yield Import(name, target, node.lineno)


def graph(package: Path, exempt: tuple[str, ...] = ()) -> list[Import]:
    """All imports inside a package, but those of the exempt modules."""
    known = modules(package)
    return [found for name, path in known.items() if name not in exempt for found in imports(name, path, known)]


def circle(edges: list[Import]) -> list[str] | None:
    """Modules that import each other in a circle, the first one again at the end; `None` where there is none."""
    targets: dict[str, set[str]] = {}
    for edge in edges:
        targets.setdefault(edge.source, set()).add(edge.target)
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for target in sorted(targets.get(name, ())):
                if found := visit(target, [*path, name]):
                    return found
            done.add(name)
        return None

    for name in sorted(targets):
        if found := visit(name, []):
            return found
    return None


def floor(name: str) -> int | None:
    """Which of the rooms a module belongs to; `None` for one that has none."""
    room = name.split(".")[1] if "." in name else ""
    return next((i for i, rooms in enumerate(ROOMS) if room in rooms), None)


def upward(edges: list[Import]) -> list[str]:
    """The imports that do not go down."""
    found = []
    for edge in edges:
        source, target = floor(edge.source), floor(edge.target)
        if source is None or target is None or target > source:
            found.append(f"{edge.source}:{edge.line} imports {edge.target}")
    return found


def words(text: str) -> list[str]:
    """The words of a text or an identifier: `solver_rate`, `SolverRate`, `the Solver's rate`."""
    return re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)


def role_names(name: str, source: str) -> Iterator[tuple[str, int, str]]:
    """
    Where a module's code names a role: qualified name of the function, class or variable, line, and the word's text.
    """

    def visit(node: ast.AST, place: str) -> Iterator[tuple[str, int, str]]:
        texts = [value for _, value in ast.iter_fields(node) if isinstance(value, str)]
        texts += [
            v for _, values in ast.iter_fields(node) if isinstance(values, list) for v in values if type(v) is str
        ]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            place = f"{place}.{node.name}"
        elif isinstance(node, ast.Assign | ast.AnnAssign) and place == name:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            place = f"{place}.{target.id}" if isinstance(target, ast.Name) else place
        for text in texts:
            if any(NAMES.fullmatch(word) for word in words(text)):
                yield place, getattr(node, "lineno", 0), text.strip()[:60]
        for child in ast.iter_child_nodes(node):
            yield from visit(child, place)

    yield from visit(parse(source), name)


def is_named(place: str) -> bool:
    return any(place == allowed or place.startswith(f"{allowed}.") for allowed in NAMED)


# ---- The package ----


def test_no_circle_of_imports():
    assert circle(graph(PACKAGE, exempt=("ccpo",))) is None


def own_packages(package: Path) -> list[str]:
    """Modules that import from the package in which they stand, which imports its modules: `from . import name`."""
    found = []
    for name, path in modules(package).items():
        start = path.with_name("__init__.py")
        if path == start or not start.is_file() or not list(imports(name, start, modules(package))):
            continue
        for node in ast.walk(parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module is None:
                found.append(f"{name}:{node.lineno}")
    return found


def test_no_module_imports_its_own_package():
    assert own_packages(PACKAGE) == []


def test_imports_go_down():
    assert upward(graph(PACKAGE, exempt=("ccpo", *SHIMS))) == []


def test_every_module_has_a_room():
    assert [name for name in modules(PACKAGE) if name not in ("ccpo", *SHIMS) and floor(name) is None] == []


def test_the_page_on_architecture_has_the_rooms_in_their_order():
    """And its map has the files in that order, those of a room together."""
    there = {name.split(".")[1] for name in modules(PACKAGE) if "." in name}
    rooms = [[room for room in floor if room in there] for floor in ROOMS]
    page = (PACKAGE.parents[1] / "docs" / "architecture.md").read_text()
    where, map_of_files = page[page.index("## Where things are") :].split("## Map of the files")
    rows = re.findall(r"^\| (`.*?) \|", where, re.MULTILINE)
    assert [re.findall("`(.*?)`", row) for row in rows] == rooms
    files = re.findall(r"^\| `src/ccpo/(\w+)", map_of_files, re.MULTILINE)
    floors = [floor(f"ccpo.{name}") for name in files if f"ccpo.{name}" not in SHIMS]
    assert floors == sorted(floors) and set(floors) == set(range(len(ROOMS)))


def test_leaves_import_nothing_of_the_package():
    assert [edge for edge in graph(PACKAGE) if edge.source in LEAVES] == []


def test_nobody_uses_an_old_path():
    assert [edge for edge in graph(PACKAGE) if edge.target in SHIMS] == []
    for name, path in modules(PACKAGE).items():
        if name in SHIMS:
            assert len(path.read_text().splitlines()) <= 5, "a shim has no code of its own"


def test_no_module_is_long():
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules(PACKAGE).items()}
    assert lengths["ccpo.training.trainer"] > 100  # it is there
    assert {name: lines for name, lines in lengths.items() if lines > LINES} == {}


def test_only_some_know_a_role_by_name():
    found = []
    for name, path in modules(PACKAGE).items():
        found += [f"{place}:{line} {text!r}" for place, line, text in role_names(name, path.read_text())]
    assert len(found) > 50  # the search finds those that are allowed
    assert [entry for entry in found if not is_named(entry.split(":")[0])] == []


def test_what_may_know_a_role_is_there():
    """An exemption whose reason went away goes too."""
    places = {place for name, path in modules(PACKAGE).items() for place, _, _ in role_names(name, path.read_text())}
    for allowed in NAMED:
        if allowed not in SHIMS:
            assert any(place == allowed or place.startswith(f"{allowed}.") for place in places), allowed


# ---- The tests of it ----


@pytest.fixture
def make_package(tmp_path):
    def make(**files):
        for name, text in files.items():
            path = tmp_path / "ccpo" / (name.replace("__", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / "ccpo"

    return make


def test_an_import_of_the_own_package_is_found(make_package):
    package = make_package(credit__a="from . import b\nfrom .b import c", credit__b="from .. import d")
    (package / "credit" / "__init__.py").write_text("from . import a")
    assert own_packages(package) == ["ccpo.credit.a:1"]


def test_every_form_of_an_import_is_read(make_package):
    package = make_package(
        a="import os\nimport ccpo.b\nfrom ccpo import c\nfrom ccpo.credit import d\nfrom .credit.e import x",
        b="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .c import C\n",
        c="def f():\n    from . import a\n    from . import __version__\n",
        credit__d="from ..a import y\nfrom .e import z\nfrom .. import b",
        credit__e="",
    )
    (package / "credit" / "__init__.py").write_text("from .d import y\nfrom . import e")
    edges = {
        (edge.source.removeprefix("ccpo."), edge.target.removeprefix("ccpo."), edge.line) for edge in graph(package)
    }
    assert edges == {
        ("a", "b", 2), ("a", "c", 3), ("a", "credit.d", 4), ("a", "credit.e", 5), ("b", "c", 3), ("c", "a", 2),
        ("c", "ccpo", 3), ("credit.d", "a", 1), ("credit.d", "credit.e", 2), ("credit.d", "b", 3),
        ("credit", "credit.d", 1), ("credit", "credit.e", 2),
    }  # fmt: skip


def test_circles_are_found(make_package):
    for_types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .{} import x"
    package = make_package(a="from .b import x", b="from .c import x", c="import os", d="from .a import x")
    assert circle(graph(package)) is None
    package = make_package(c=for_types.format("a"))
    assert circle(graph(package)) == ["ccpo.a", "ccpo.b", "ccpo.c", "ccpo.a"]
    assert circle(graph(package, exempt=("ccpo.c",))) is None
    assert circle([Import("a", "a", 1)]) == ["a", "a"]


@pytest.mark.parametrize(
    ("source", "target", "allowed"),
    [
        ("credit.tree", "credit.groups", True),
        ("team.rollout", "calls", True),
        ("credit.tree", "calls", True),
        ("team.rollout", "credit", True),
        ("credit", "team.rollout", False),
        ("verifier.pool", "generation", False),
        ("generation", "verifier", True),
        ("rewards.base", "ratings", True),
        ("ratings.reading", "rewards.base", True),  # beside each other: circles are another matter
        ("rewards.base", "evaluation", False),
        ("evaluation", "rewards.base", True),
        ("evaluation", "training.config", False),
        ("training.config", "arguments", False),
        ("training.trainer", "evaluation", True),
        ("arguments", "training.trainer", True),
        ("train", "arguments", True),
        ("tasks.task", "train", False),
        ("arguments", "attic", False),  # no room
        ("arguments", "", False),  # the package's own list of public names
    ],
)
def test_upward_by_hand(source, target, allowed):
    edge = Import(f"ccpo.{source}", f"ccpo.{target}".rstrip("."), 1)
    assert (upward([edge]) == []) is allowed


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x = 'a solver'", ["ccpo.m.x"]),
        ("x: str = 'the Thinker\\'s'", ["ccpo.m.x"]),
        ("def f():\n    '''Thinkers.'''", ["ccpo.m.f"]),
        ("class A:\n    def f(self, solver_rate): ...", ["ccpo.m.A.f"]),
        ("class A:\n    solver = 1", ["ccpo.m.A"]),
        ("f(thinker=1)", ["ccpo.m"]),
        ("x.SolverRate", ["ccpo.m"]),
        ("def solver(): ...", ["ccpo.m.solver"]),
        ("import thinker as t", ["ccpo.m"]),
        ("from . import solver_x", ["ccpo.m"]),
        ("f'{x}: Solver'", ["ccpo.m"]),
        ("def f():\n    global solver", ["ccpo.m.f"]),
        ("match x:\n    case {'thinker': y}: pass", ["ccpo.m"]),
        ("class A(ThinkSolve): 'resolver, dissolve, solves, thinking'", []),
        ("x = resolver  # the solver, in a comment", []),
    ],
)
def test_role_names_are_found(source, found):
    assert [place for place, _, _ in role_names("ccpo.m", source)] == found
