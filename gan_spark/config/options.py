"""An option of a config: its default, its range and what it is for."""

import dataclasses
from typing import Any


def option(default: Any, help: str, *, low=None, high=None, choices=None, run: str = "", file: bool = False) -> Any:
    """A dataclass field that carries its range (both ends allowed), its description, which model's run it names, where
    it names one that is used, and whether it names a file.
    """
    metadata = {"help": help, "low": low, "high": high, "choices": choices, "run": run, "file": file}
    return dataclasses.field(default=default, metadata=metadata)
