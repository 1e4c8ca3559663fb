"""What a user installs: the metadata, what is in the wheel and the sdist, and the README as PyPI shows it."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path, PurePosixPath

import pytest
from lowest_versions import lowest_versions
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "ccpo"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
BLOB = f"{PROJECT['urls']['Repository']}/blob/main/"
RAW = BLOB.replace("github.com", "raw.githubusercontent.com").replace("/blob/main/", "/main/")
NOT_PACKED = shutil.ignore_patterns(
    ".git*", ".venv*", ".*_cache", "__pycache__", "*.egg-info", "build", "dist", "outputs", "wandb"
)


def distributions_of(lines) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in lines}


def imports() -> dict[str, list[tuple[str, bool]]]:
    """Each foreign distribution that src/ccpo imports: where, and whether that is at a module's top."""
    installed, found = packages_distributions(), {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            else:
                continue
            for top in {name.split(".")[0] for name in names} - {*sys.stdlib_module_names, "ccpo"}:
                name = canonicalize_name(installed.get(top, [top])[0])
                found.setdefault(name, []).append((f"{path.relative_to(SOURCE)}:{node.lineno}", not node.col_offset))
    return found


# ---- The metadata ----


def test_every_import_is_declared_and_nothing_else():
    own, extras = distributions_of(PROJECT["dependencies"]), distributions_of(sum(EXTRAS.values(), []))
    found = imports()
    undeclared = {name: where for name, where in found.items() if name not in own | extras}
    assert not undeclared, f"imported, and not in pyproject.toml: {undeclared}"
    needed = {name: where for name, where in found.items() if name not in own and any(top for _, top in where)}
    assert not needed, f"an extra's, and imported at the top of a module: {needed}"
    assert own <= set(found), f"in pyproject.toml, and imported nowhere: {own - set(found)}"


def test_remedies_name_extras_that_exist():
    named = {}
    for path in [
        ROOT / "README.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("recipes/**/*.yaml"),
        *SOURCE.rglob("*.py"),
    ]:
        for extras in re.findall(r"pip install [^\n]*?(?:ccpo|\.)\[([\w,]+)\]", path.read_text()):
            for extra in extras.split(","):
                named.setdefault(extra, path)
    assert {"serve", "vllm", "deepspeed", "llm"} <= set(named)
    assert not {extra: path for extra, path in named.items() if extra not in EXTRAS}


def test_every_requirement_has_a_lowest_version_and_allows_what_is_pinned():
    requirements = [Requirement(line) for line in [*PROJECT["dependencies"], *sum(EXTRAS.values(), [])]]
    requirements = [each for each in requirements if not each.extras or each.specifier]  # not `transformers[serving]`
    assert not [str(each) for each in requirements if not any(bound.operator == ">=" for bound in each.specifier)]
    assert {canonicalize_name(name) for name in lowest_versions(PROJECT)} >= distributions_of(PROJECT["dependencies"])
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#")
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    for each in requirements:
        name = canonicalize_name(each.name)
        assert name not in pins or each.specifier.contains(pins[name]), f"constraints.txt has {pins[name]}: {each}"
        if name in ("trl", "transformers", "accelerate", "math-verify", "latex2sympy2-extended", "deepspeed"):
            assert any(bound.operator == "<" for bound in each.specifier), f"private names, no upper bound: {each}"


def test_python_and_system():
    assert PROJECT["requires-python"] == ">=3.11"
    assert "Operating System :: POSIX" in PROJECT["classifiers"]
    assert not [line for line in PROJECT["classifiers"] if line.endswith("3.10")]
    assert PROJECT["authors"] == [{"name": "ccpo developers"}]


def test_commands_are_there():
    for place in PROJECT["scripts"].values():
        module, function = place.split(":")
        assert callable(getattr(importlib.import_module(module), function))


# ---- The wheel and the sdist ----


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """The wheel and the sdist, built offline by setuptools from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("built")
    copy = folder / "copy"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=NOT_PACKED)
    code = "from setuptools import build_meta as b; b.build_wheel('../wheel'); b.build_sdist('../sdist')"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Package would be ignored" not in done.stderr
    return {kind: next((folder / kind).glob("ccpo-*")) for kind in ("wheel", "sdist")}


def packed(folder: Path) -> set[str]:
    """The files of a folder, links followed."""
    found = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found |= {str(Path(path, name).relative_to(folder)) for name in files}
    return found


def test_wheel_has_every_file_of_the_package(built):
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = {name for name in wheel.namelist() if not PurePosixPath(name).parts[0].endswith(".dist-info")}
        text = next(wheel.read(name) for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        assert wheel.read("ccpo/recipes/smoke/config_gsm8k.yaml")
    expected = {f"ccpo/{name}" for name in packed(SOURCE)}
    assert names == expected
    assert {"ccpo/py.typed", "ccpo/recipes/accelerate_configs/cpu.yaml", "ccpo/recipes/slurm/train.slurm"} <= names
    metadata = Metadata.from_email(text, validate=True)
    assert metadata.license_expression == "Apache-2.0" and metadata.description_content_type == "text/markdown"
    assert set(metadata.project_urls) == {"Repository", "Documentation", "Changelog", "Paper"}
    assert set(metadata.provides_extra) == set(EXTRAS)


def test_sdist_has_every_file_of_the_checkout(built):
    with tarfile.open(built["sdist"]) as sdist:
        assert all(member.isfile() or member.isdir() for member in sdist), "a link, which not every system unpacks"
        names = {str(PurePosixPath(*PurePosixPath(m.name).parts[1:])) for m in sdist if m.isfile()}
    folders = ("src", "tests", "recipes", "docs", "examples", "benchmarks")
    expected = {f"{name}/{file}" for name in folders for file in packed(ROOT / name)}
    files = "LICENSE README.md CHANGELOG.md CONTRIBUTING.md LOG.md Makefile constraints.txt pyproject.toml setup.cfg"
    expected |= set(files.split())
    missing = {name for name in expected - names if ".egg-info/" not in name and name.split("/")[-1][0] != "."}
    assert not missing


@pytest.mark.full  # it imports what all tests import
def test_tests_of_the_sdist_collect(built, tmp_path):
    with tarfile.open(built["sdist"]) as sdist:
        sdist.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert int(re.search(r"(\d+) tests collected", done.stdout)[1]) > 1000


# ---- README, which PyPI shows too ----


def links() -> list[str]:
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)


def test_links_and_pictures_work_away_from_the_checkout():
    relative = [link for link in links() if not link.startswith("https://")]
    assert not relative
    ours = [link.removeprefix(start) for link in links() for start in (BLOB, RAW) if link.startswith(start)]
    assert ours
    assert not [path for path in ours if not (ROOT / path.partition("#")[0]).is_file()]


def test_readme_renders_as_pypi_renders_it():
    markdown = pytest.importorskip("readme_renderer.markdown", reason="needs readme_renderer[md]")
    html = markdown.render((ROOT / "README.md").read_text())
    assert html and "<table>" in html and "<pre" in html
