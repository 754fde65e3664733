"""python -m gan_spark: what is not a job."""

import argparse
import json
import os
import shutil
import sys

from .config import UserError, leaves


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gan_spark")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("java-home", help="print a JAVA_HOME that Spark 3.4 runs on, for spark-submit")
    commands.add_parser("bigdl-jars", help="print BigDL's jars, for spark-submit --jars")
    listing = commands.add_parser("models", help="every model with its paper, inputs and config keys")
    listing.add_argument("name", nargs="*", help="these alone")
    commands.add_parser("reference", help="every config key, as Markdown: docs/config.md")
    fetch = commands.add_parser("download", help="fetch a well-known image set, with its checksum")
    fetch.add_argument("name")
    fetch.add_argument("folder", help="path or URL")
    listing = commands.add_parser("runs", help="the lake's runs, as a table")
    show = commands.add_parser("show", help="what a run came from and led to")
    show.add_argument("run")
    promoting = commands.add_parser("promote", help="make a run the promoted version of a named model")
    promoting.add_argument("run")
    promoting.add_argument(
        "--if-better", action="store_true", help="only where its FID is below the promoted version's"
    )
    back = commands.add_parser("rollback", help="promote the version from before again")
    for command in (promoting, back):
        command.add_argument("--model", default="default", help="name of the model (default: %(default)s)")
    for command in (listing, show, promoting, back):
        command.add_argument("--lake", default="lake", help="path or URL (default: %(default)s)")
        command.add_argument("--json", action="store_true", help="print JSON, not a table")
    arguments = parser.parse_args()
    try:
        _COMMANDS[arguments.command](arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _java_home(_) -> None:
    from .job import java_home

    print(
        java_home()
        or os.environ.get("JAVA_HOME")
        or os.path.dirname(os.path.dirname(os.path.realpath(shutil.which("java"))))
    )


def _bigdl_jars(_) -> None:
    from .ml.bigdl import jars

    print(",".join(jars()))


def _models(arguments) -> None:
    from .models import MODELS, describe

    print("\n\n".join(describe(name) for name in arguments.name or sorted(MODELS)))


def _reference(_) -> None:
    from .reference import markdown

    print(markdown(), end="")


def _download(arguments) -> None:
    from .data.downloads import download

    print("\n".join(download(arguments.name, arguments.folder)))


def _runs(arguments) -> None:
    from .runs import catalogue

    _print(catalogue.runs(arguments.lake), arguments.json)


def _show(arguments) -> None:
    from .runs import catalogue

    _print(catalogue.lineage(arguments.lake, arguments.run), arguments.json)


def _promote(arguments) -> None:
    from .runs import registry

    _print(registry.promote(arguments.lake, arguments.run, arguments.model, arguments.if_better), arguments.json)


def _rollback(arguments) -> None:
    from .runs import registry

    _print(registry.rollback(arguments.lake, arguments.model), arguments.json)


def _print(value: list[dict] | dict, as_json: bool) -> None:
    """A table: a row an item of a list; a line a leaf of a dict."""
    if as_json:
        print(json.dumps(value))
        return
    if isinstance(value, dict):
        rows = list(leaves(value))
    else:
        rows = (
            [tuple(value[0])]
            + [
                tuple(
                    "" if each is None else f"{each:.6g}" if isinstance(each, float) else str(each)
                    for each in row.values()
                )
                for row in value
            ]
            if value
            else [("no runs",)]
        )
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


_COMMANDS = {
    "java-home": _java_home,
    "bigdl-jars": _bigdl_jars,
    "models": _models,
    "reference": _reference,
    "download": _download,
    "runs": _runs,
    "show": _show,
    "promote": _promote,
    "rollback": _rollback,
}

if __name__ == "__main__":
    sys.exit(main())
