"""Limits of the service, each an option of `gan-spark serve`."""

import argparse
import dataclasses

from ..config import UserError, option


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may ask for, and how long it may take."""

    max_mb: int = option(8, "megabytes of a request; more are answered 413", low=1, high=1024)
    max_megapixels: int = option(16, "of an image that is sent; more are answered 400, unread", low=1, high=1024)
    max_images: int = option(64, "images of one request; more are answered 400", low=1, high=4096)
    max_waiting: int = option(512, "images that wait to be computed; more are answered 503", low=1, high=65536)
    max_connections: int = option(512, "open connections; more are answered 503", low=1, high=65536)
    receive_seconds: int = option(10, "to receive a request; slower ones are answered 408", low=1, high=3600)
    answer_seconds: int = option(30, "to wait to be computed; longer ones are answered 503", low=1, high=3600)
    batch_milliseconds: int = option(2, "that a request waits at most for others to be computed with", low=0, high=1000)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for field in dataclasses.fields(Limits):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(
            flag, type=int, default=field.default, metavar="N", help=f"{field.metadata['help']} (default: %(default)s)"
        )


def of(arguments: argparse.Namespace) -> Limits:
    """The limits of parsed arguments; `UserError` for one out of its range."""
    values = {}
    for field in dataclasses.fields(Limits):
        value, low, high = getattr(arguments, field.name), field.metadata["low"], field.metadata["high"]
        if not low <= value <= high:
            raise UserError(f"--{field.name.replace('_', '-')} {value}: expected {low} to {high}")
        values[field.name] = value
    return Limits(**values)
