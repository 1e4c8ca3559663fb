"""
Prints the lowest versions that pyproject.toml allows, of the package and of its extras, as constraints for pip.

`make test-min` installs them. torch is left out: below 2.13 there is no wheel for CPUs alone.
"""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
TOOLS = ("dev", "docs")  # extras that the package does not run with


def lowest_versions(project: dict) -> dict[str, str]:
    """Each requirement's version after `>=`."""
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for name in extras if name not in TOOLS for line in extras[name])]
    found = {}
    for requirement in map(Requirement, lines):
        lower = [each.version for each in requirement.specifier if each.operator == ">="]
        if lower:
            found[requirement.name] = lower[0]
    return found


if __name__ == "__main__":
    versions = lowest_versions(tomllib.loads(PROJECT.read_text())["project"])
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in versions.items() if name != "torch")
