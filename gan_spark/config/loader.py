"""Run configs: TOML read strictly into frozen dataclasses.

An unknown key, a wrong type or a value out of range is a `UserError` that
names the key, what was given, what is allowed and the nearest right spelling.
"""

import dataclasses
import difflib
import os
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .errors import UserError
from .names import check_name, check_path
from .sections import Config, Train


def load(path: str, overrides: Sequence[str] = (), model_config: Callable[[str], type] | None = None) -> Config:
    """Reads `path`, applies `key.sub=value` overrides, checks every value; `check_sections` checks them together.

    `model_config` gives the Config class for a model's name (`models.config_class`);
    it is passed in so that this module needs no TensorFlow.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"config {path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"config {path}: not valid TOML: {error}") from error
    for override in overrides:
        _override(table, override)
    config = parse(table, model_config)
    if ":/" not in config.lake:
        check_path("lake", config.lake, os.path.abspath(config.lake))
    return config


def parse(table: dict, model_config: Callable[[str], type] | None = None) -> Config:
    """A `Config` from nested dicts, each value of which is checked; the inverse of `resolved`."""
    table = dict(table)
    model = table.pop("model", None)
    config = _build(Config, table, "")
    for key in ("run", "dataset"):
        check_name(key, getattr(config, key))
    check_path("lake", config.lake, config.lake)
    if model is not None:
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            raise UserError("model.name: expected the name of a model as a string")
        if model_config is None:
            raise TypeError("a config with a [model] section is parsed with model_config = models.config_class")
        config = dataclasses.replace(config, model=_build(model_config(model["name"]), model, "model."))
    return config


def check_sections(config: Config, *names: str) -> None:
    """`UserError` where options of these sections do not go together. A job checks the sections that it reads: those
    of other jobs may be as they like.
    """
    for name in names:
        _CHECKS[name](config)


def _check_ingest(config: Config) -> None:
    held_out = config.ingest.validation + config.ingest.test
    if held_out >= 1:
        raise UserError(
            f"ingest.validation + ingest.test = {held_out:g}: expected less than 1, so that some images are left to"
            " train on"
        )
    if not isinstance(limits := config.ingest.range, str) and (len(limits) != 2 or not limits[0] < limits[1]):
        raise UserError(f"ingest.range = {list(limits)}: expected two numbers, the lower first")


def _check_train(config: Config) -> None:
    options = config.train
    _check_shares(config, "train.batch_size", options.batch_size)
    if options.patience and not options.validate_every:
        raise UserError(
            f"train.patience = {options.patience} with train.validate_every = 0: expected steps between measures"
        )

    if options.new_share:
        _check_new_share(config)


def _check_new_share(config: Config) -> None:
    options, share = config.train, config.train.batch_size // config.train.workers
    if not options.start_from and not config.stream.train_every:
        raise UserError(
            f"train.new_share = {options.new_share:g} without train.start_from: expected a run whose images are the old"
            " ones"
        )
    if options.new_share < 1 and not 0 < new_images(options) < share:
        raise UserError(
            f"train.new_share = {options.new_share:g} of the {share} images that a rank has of a batch: expected at"
            " least one of them to be new, and one not"
        )


def new_images(options: Train) -> int:
    """How many of the images that a rank has of a batch are new ones."""
    return round(options.new_share * (options.batch_size // options.workers))


def _check_evaluate(config: Config) -> None:
    if config.evaluate.features == "lenet":
        _check_shares(config, "evaluate.classifier_batch", config.evaluate.classifier_batch)


_CHECKS = {"ingest": _check_ingest, "train": _check_train, "evaluate": _check_evaluate}


def _check_shares(config: Config, key: str, batch: int) -> None:
    """`UserError` where the ranks cannot share a batch, the value of `key`."""
    workers = config.train.workers
    if batch % workers:
        raise UserError(f"{key} = {batch} does not divide by train.workers = {workers}: each rank takes an equal share")
    if config.train.launcher == "local" and workers > 1:
        raise UserError(
            f"train.workers = {workers} with train.launcher = 'local': one process is one worker; use launcher 'spark'"
        )


def resolved(config: Any) -> dict:
    """The config as plain, JSON-ready dicts with every default filled in."""
    return dataclasses.asdict(config)


def replaced(config: Config, **sections: dict) -> Config:
    """`config` with other values in its sections, for instance train={"steps": 3}."""
    return dataclasses.replace(
        config, **{name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()}
    )


def differences(old: dict, new: dict, ignore: Sequence[str] = (), where: str = "") -> list[str]:
    """'key: was X, is Y' for each leaf that differs, but for those named in `ignore`."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        name = where + key
        if name in ignore:
            continue
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, ignore, name + ".")
        elif _plain(a) != _plain(b):
            lines.append(f"{name}: was {_plain(a)!r}, is {_plain(b)!r}")
    return lines


def leaves(table: dict, where: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, text) of each leaf of nested dicts, in order."""
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", _text(value)


def _text(leaf: Any) -> str:
    if isinstance(leaf, (list, tuple)):
        return ", ".join(map(str, leaf))
    return "" if leaf is None or leaf == {} else str(leaf)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class _Given(typing.NamedTuple):
    """A value of --set that may be meant as text: a run or a class can be called 7, or 2026-11-25."""

    text: str
    value: Any


def _override(table: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: expected key=value, for instance train.steps=10")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    if not isinstance(value, (str, list, dict)):
        value = _Given(text, value)
    *sections, last = key.split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise UserError(f"--set {override}: {section} is a value, not a section")
    table[last] = value


def _build(cls: type, table: dict, where: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    kinds = typing.get_type_hints(cls)
    values = {}
    for key, value in table.items():
        if isinstance(value, _Given):
            value = value.text if kinds.get(key) is str else value.value
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            hint = f"; did you mean {where}{near[0]}?" if near else ""
            raise UserError(f"{where}{key}: unknown key{hint} (known: {', '.join(fields)})")
        if dataclasses.is_dataclass(kinds[key]):
            if not isinstance(value, dict):
                raise UserError(f"{where}{key} = {value!r}: expected a section [{where}{key}]")
            values[key] = _build(kinds[key], value, f"{where}{key}.")
        else:
            values[key] = _checked(f"{where}{key}", value, kinds[key], fields[key].metadata)
    missing = [name for name, field in fields.items() if name not in values and field.default is dataclasses.MISSING]
    if missing:
        raise UserError(f"{where}{missing[0]}: missing; it has no default")
    return cls(**values)


def _checked(name: str, value: Any, kind: Any, limits: typing.Mapping) -> Any:
    if isinstance(kind, types.UnionType):  # a choice of words, or a list
        word, many = typing.get_args(kind)
        return _checked(name, value, *((many, {}) if isinstance(value, (list, tuple)) else (word, limits)))
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{name} = {value!r}: expected a list of {item.__name__}")
        return tuple(_checked(f"{name}[{i}]", entry, item, limits) for i, entry in enumerate(value))
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"{name} = {value!r}: expected {kind.__name__}, got {type(value).__name__}")
    low, high, choices = (limits.get(key) for key in ("low", "high", "choices"))
    if choices and value not in choices and not (limits.get("imported") and ":" in value):
        near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        own = ", or package.module:attribute" if limits.get("imported") else ""
        raise UserError(f"{name} = {value!r}: expected one of {', '.join(map(repr, choices))}{own}{hint}")
    # Written so that NaN, which compares false with everything, is refused.
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        allowed = " and ".join([f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None))
        raise UserError(f"{name} = {value!r}: expected {allowed}")
    return value
