"""List and load the members of a family: a folder whose files hold one member each.

A family is named by its package, such as ``robustcompress.training.objectives``. Its members are the
modules in that folder, plus those that installed packages announce under the entry-point group
``robustcompress.<last part of the package>``. Listing reads file and entry-point names only: nothing is
imported until a member is asked for.
"""

import importlib
import pkgutil
from difflib import get_close_matches
from importlib.metadata import entry_points
from importlib.util import find_spec
from keyword import iskeyword
from types import ModuleType

from robustcompress.errors import ConfigError


def _group(family: str) -> str:
    return f"robustcompress.{family.rsplit('.', 1)[-1]}"


def kinds(family: str) -> list[str]:
    """Return the sorted kinds (file names) of ``family``, entry points of other packages included."""
    spec = find_spec(family)
    if spec is None or spec.submodule_search_locations is None:
        raise ConfigError(f"{family!r} is not a package, so it cannot be a family of members.")
    own = {kind_of(module.name) for module in pkgutil.iter_modules(spec.submodule_search_locations)}
    foreign = {point.name for point in entry_points(group=_group(family))}
    return sorted(kind for kind in own | foreign if not kind.startswith("_"))


def kind_of(module: str) -> str:
    """Return the kind that a file's name stands for: ``global_.py`` holds ``global``, a word of Python."""
    return module.removesuffix("_") if iskeyword(module.removesuffix("_")) else module


def suggestion(word: str, candidates: list[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest candidate, or an empty string."""
    near = get_close_matches(word, candidates, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def load_module(family: str, kind: str) -> ModuleType:
    """Import the module that holds member ``kind`` of ``family``.

    Raises:
        ConfigError: If no member has that name. Only listed names are ever imported.
    """
    known = kinds(family)
    if kind not in known:
        noun = family.rsplit(".", 1)[-1].rstrip("s")
        raise ConfigError(
            f"unknown {noun} {kind!r}.{suggestion(kind, known)} Known: {', '.join(known) or 'none'}."
        )
    for point in entry_points(group=_group(family)):
        if point.name == kind:
            return importlib.import_module(point.module)
    return importlib.import_module(f"{family}.{kind}_" if iskeyword(kind) else f"{family}.{kind}")
