"""Names of what is outside of the package: "package.module:attribute", as a config writes them."""

import difflib
import importlib
import re
from typing import Any

from .errors import UserError

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def imported(key: str, name: str) -> Any:
    """The attribute that `name` names, for the config's `key`. Its module is imported, which runs it: `name` must come
    from the user's own config or command line.

    `UserError` where there is no such module or attribute, or where importing it fails.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{key} = {name!r}: expected package.module:attribute, for instance my_package.lsgan:LSGAN")
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{key} = {name!r}: {module_name} imports {error.name!r}, which is not installed"
            ) from error
        raise UserError(
            f"{key} = {name!r}: no module {error.name!r} where Python looks; install it, or name its folder in"
            " PYTHONPATH (on a cluster, also on every executor)"
        ) from error
    except Exception as error:  # The module's own code, which may raise anything.
        raise UserError(
            f"{key} = {name!r}: importing {module_name} failed with {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, vars(module), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{key} = {name!r}: module {module_name} ({module.__file__}) has no {attribute!r}{hint}")
    return getattr(module, attribute)
