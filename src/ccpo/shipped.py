"""The recipes and the accelerate configurations that come with the package."""

import logging
import shutil
from pathlib import Path

from .exits import nearest

logger = logging.getLogger(__name__)

# In a checkout a link to `recipes/`, in a wheel the files themselves.
RECIPES = Path(__file__).with_name("recipes")
LAUNCHES = "accelerate_configs"
DEFAULT_RECIPE = RECIPES / "arithmetic" / "c3" / "config_demo.yaml"


def list_recipes() -> list[str]:
    """The names of the recipes: paths in the folder of recipes, sorted."""
    found = (path.relative_to(RECIPES) for path in RECIPES.glob("*/**/*.yaml"))
    return sorted(str(path) for path in found if path.parts[0] != LAUNCHES)


def list_launches() -> list[str]:
    """The names of the accelerate configurations, sorted."""
    return sorted(path.stem for path in (RECIPES / LAUNCHES).glob("*.yaml"))


def describe(name: str) -> str:
    """What the first line of a recipe says."""
    with (RECIPES / name).open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()


def find_recipe(given: str) -> Path:
    """
    The recipe that a command line means: a file, or else one that is shipped.

    Args:
        given (`str`): a path; or the name of a shipped recipe, also with `recipes/` before it.

    Raises:
        `ValueError`: neither.
    """
    if Path(given).is_file():
        return Path(given)
    names, wanted = list_recipes(), given.removeprefix("./").removeprefix("recipes/")
    if wanted in names:
        logger.info("`--config %s`: the recipe %s, which is shipped.", given, RECIPES / wanted)
        return RECIPES / wanted
    raise ValueError(
        f"`--config {given}` is neither a file nor a shipped recipe.{nearest(wanted, names)} `ccpo recipes` lists "
        "those that are shipped."
    )


def find_launch(given: str) -> Path:
    """
    The accelerate configuration that `--accelerate_config` means: a file, or else one that is shipped.

    Args:
        given (`str`): a path, or the name of a shipped one, such as `"zero3"`.

    Raises:
        `ValueError`: neither.
    """
    if Path(given).is_file():
        return Path(given)
    names = list_launches()
    if given in names:
        return RECIPES / LAUNCHES / f"{given}.yaml"
    raise ValueError(f"`--accelerate_config {given}` is neither a file nor one of {names}.{nearest(given, names)}")


def copy_out(name: str, folder: str | Path = ".") -> Path:
    """
    Copy a shipped recipe, or a shipped accelerate configuration, into a folder.

    Args:
        name (`str`): as `ccpo recipes` lists it.
        folder (`str` or `Path`): where to; made if it is not there.

    Returns:
        `Path`: the copy.

    Raises:
        `ValueError`: no such recipe, a file of this name is there, or the folder cannot be one.
    """
    names = [*list_recipes(), *(f"{LAUNCHES}/{launch}.yaml" for launch in list_launches())]
    wanted = name.removeprefix("recipes/")
    if wanted not in names:
        raise ValueError(f"`{name}` is not a shipped recipe.{nearest(wanted, names)} `ccpo recipes` lists them.")
    copy = Path(folder) / Path(wanted).name
    if copy.exists():
        raise ValueError(f"{copy} is there already. Move it, or name another folder.")
    if copy.parent.suffix in (".yaml", ".yml") and not copy.parent.exists():
        raise ValueError(f"{copy.parent} is to be a folder. Name one: the copy is called {copy.name} there.")
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copyfile(RECIPES / wanted, copy))
    except OSError as error:
        raise ValueError(f"{copy} cannot be written ({error.strerror}). Name another folder.") from error
