"""The one rule for names of runs, datasets, tables and models, which become names of folders in the lake."""

import re

from .errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PATTERNS = set("#?*[]{}")


def check_name(key: str, name: str) -> str:
    """The name; `UserError`, which says what `key` it is the value of, where it could leave its folder of the lake."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{key} = {name!r}: expected letters, digits, '.', '_' and '-', starting with a letter or digit"
        )
    return name


def check_path(key: str, value: str, path: str) -> None:
    """`UserError` where Spark would read `path`, which is what `value` stands for, as a pattern."""
    if patterns := sorted(set(path) & _PATTERNS):
        raise UserError(
            f"{key} = {value!r}: expected a path without any of # ? * [ ] {{ }}, which Spark reads as patterns; found"
            f" {' '.join(patterns)} in {path}: use another folder"
        )
