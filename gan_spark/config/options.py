"""An option of a config: its default, its range and what it is for."""

import dataclasses
from typing import Any


def option(
    default: Any,
    help: str,
    *,
    low=None,
    high=None,
    choices=None,
    run: str = "",
    file: bool = False,
    imported: bool = False,
) -> Any:
    """A dataclass field that carries its range (both ends allowed), its description, which model's run it names, where
    it names one that is used, whether it names a file, and whether it may name, beside its choices, an attribute of a
    module outside of the package.
    """
    metadata = {
        "help": help,
        "low": low,
        "high": high,
        "choices": choices,
        "run": run,
        "file": file,
        "imported": imported,
    }
    return dataclasses.field(default=default, metadata=metadata)
