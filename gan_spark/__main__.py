"""The command gan-spark, which is python -m gan_spark: every job, and what is not a job."""

import argparse
import difflib
import json
import os
import re
import shutil
import sys
import traceback
from collections.abc import Sequence

from . import failures, process
from .config import UserError, leaves
from .job import JOBS, conf_folder, java_home, script
from .serving import server

PROMOTE = """gan-spark promote RUN [--model NAME] [--if-better] [--lake URL] [--json]
       gan-spark promote --config FILE [--set KEY=VALUE] [--dry-run] [--verbose]"""


VERDICT = """gan-spark verdict --model NAME [--act] [--page] [--lake URL] [--json]
       gan-spark verdict --config FILE [--set KEY=VALUE] [--dry-run] [--verbose]"""
_BOTH = ("promote", "verdict")  # jobs with a config, and commands without one


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the subcommand of `argv`; its exit code, as README.md lists them."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and _is_job(argv):
        return script(argv[0], argv[1:], prog=f"gan-spark {argv[0]}")
    arguments = _parser().parse_args(argv)
    process.prepare()
    try:
        return _COMMANDS[arguments.command](arguments) or 0
    except BrokenPipeError:  # Whoever reads has seen enough, as `head` does; nor is there anybody for what is buffered.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return failures.report(error)


def _is_job(argv: list[str]) -> bool:
    """Whether the subcommand is a job; `promote` and `verdict` are with a config, and without one are commands."""
    has_config = any(word.partition("=")[0] == "--config" for word in argv)
    return argv[0] in JOBS and (argv[0] not in _BOTH or has_config)


def _parser() -> argparse.ArgumentParser:
    """The parser of the commands that are not jobs; jobs, which parse their own arguments, it lists."""
    parser = argparse.ArgumentParser(
        prog="gan-spark",
        description="Train generative image models on Spark clusters.",
        epilog="`gan-spark COMMAND --help` says what a command takes.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, job in JOBS.items():
        if name not in _BOTH:
            commands.add_parser(name, help=job.description)
    in_lake = [*_add_models(commands), *_add_data(commands)]
    for command in in_lake:
        command.add_argument("--lake", default="lake", metavar="URL", help="path or URL (default: %(default)s)")
        if not command.prog.endswith(" serve"):
            command.add_argument("--json", action="store_true", help="print JSON, not a table")
    init = commands.add_parser("init", help="write an example config into this folder, or list the examples")
    init.add_argument("name", nargs="?", metavar="NAME", help="without it, the examples are listed")
    models = commands.add_parser("models", help="every model with its paper, inputs and config keys")
    models.add_argument("name", nargs="*", metavar="NAME", help="these alone")
    check = commands.add_parser("check", help="try what every model must do with one of them")
    check.add_argument("name", metavar="NAME", help="of a model, or my_package.my_module:MyModel")
    commands.add_parser("reference", help="every config key, as Markdown: docs/config.md")
    download = commands.add_parser("download", help="fetch a well-known image set, with its checksum")
    download.add_argument("name", metavar="NAME")
    download.add_argument("folder", metavar="FOLDER", help="path or URL")
    commands.add_parser("java-home", help="print a JAVA_HOME that Spark 3.4 runs on, for spark-submit")
    commands.add_parser("bigdl-jars", help="print BigDL's jars, for spark-submit --jars")
    return parser


def _add_models(commands) -> list[argparse.ArgumentParser]:
    """The commands about registered models, and those that hand a model to others."""
    promote = commands.add_parser(
        "promote",
        help="make a run the promoted version of a named model: RUN, or the run of --config",
        usage=PROMOTE,
        description="Make a run the promoted version of a named model; with --config, as the job that the config says.",
    )
    promote.add_argument("run", metavar="RUN")
    promote.add_argument("--if-better", action="store_true", help="only where its FID is below the promoted version's")
    rollback = commands.add_parser("rollback", help="promote the version from before again")
    challenge = commands.add_parser("challenge", help="let a run answer a share of a registered model's requests")
    challenger = challenge.add_mutually_exclusive_group(required=True)
    challenger.add_argument("run", nargs="?", default="", metavar="RUN", help="at its preferred checkpoint")
    challenger.add_argument("--end", action="store_true", help="end the challenge: the promoted version answers all")
    challenge.add_argument(
        "--share", type=float, default=0.1, metavar="X", help="of the requests (default: %(default)s)"
    )
    verdict = commands.add_parser(
        "verdict", help="compare a registered model's challenger with the promoted version", usage=VERDICT
    )
    verdict.add_argument("--page", action="store_true", help="draw <lake>/reports/verdicts/NAME.html, too")
    verdict.add_argument("--act", action="store_true", help="promote or end the challenger, where the evidence allows")
    for command in (promote, rollback, challenge, verdict):
        command.add_argument(
            "--model", default="default", metavar="NAME", help="name of the model (default: %(default)s)"
        )
    export = commands.add_parser("export", help="write a run's model as a TensorFlow SavedModel and an MLflow model")
    which = export.add_mutually_exclusive_group(required=True)
    which.add_argument("run", nargs="?", default="", metavar="RUN", help="at its preferred checkpoint")
    which.add_argument("--model", default="", metavar="NAME", help="the promoted version of this registered model")
    export.add_argument("--to", required=True, metavar="URL", help="folder to write to, as a path or URL")
    serve = commands.add_parser("serve", help="answer over HTTP by the promoted version of a registered model")
    server.add_arguments(serve)
    return [promote, rollback, challenge, verdict, export, serve]


def _add_data(commands) -> list[argparse.ArgumentParser]:
    """The commands about what is in a lake."""
    runs = commands.add_parser("runs", help="the lake's runs, as a table")
    show = commands.add_parser("show", help="what a run came from and led to, or the snapshots of a dataset")
    show.add_argument("name", metavar="NAME", help="of a run, or else of a dataset")
    datasets = commands.add_parser("datasets", help="the lake's datasets, as a table")
    expire = commands.add_parser("expire", help="forget snapshots of a dataset, and remove the files of theirs alone")
    expire.add_argument("--keep", type=int, required=True, metavar="N", help="keep the newest N")
    expire.add_argument("--force", action="store_true", help="even those that a run needs to be trained further")
    compact = commands.add_parser("compact", help="write the small files of a dataset anew as few, as a new snapshot")
    for command in (expire, compact):
        command.add_argument("dataset", metavar="DATASET")
    return [runs, show, datasets, expire, compact]


def _init(arguments) -> None:
    examples = {path.stem: path for path in conf_folder().glob("*.toml")}
    name = arguments.name
    if name is None:
        width = max(map(len, examples))
        for example, path in sorted(examples.items()):
            print(f"{example:<{width}}  {path.read_text().splitlines()[0].lstrip('# ')}")
        return
    if name not in examples:
        near = difflib.get_close_matches(name, examples, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"no example {name!r}{hint} (`gan-spark init` lists them)")
    text = examples[name].read_text()
    try:
        with open(f"{name}.toml", "x") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(
            f"{os.path.abspath(f'{name}.toml')} is there already, and is left as it is: remove it, or go to another"
            " folder"
        ) from None
    print(f"{name}.toml is written. Next:")
    for job, config, changes in re.findall(r"^#   uv run jobs/(\w+)\.py --config conf/(\S+)(.*)", text, re.MULTILINE):
        print(f"  gan-spark {job} --config {config}{changes}")


def _java_home(_) -> None:
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


def _check(arguments) -> int | None:
    from .check import CheckFailed, check

    try:
        for line in check(arguments.name):
            print(line, flush=True)
    except CheckFailed as error:
        if error.__cause__ is not None:  # An error of the user's own code.
            traceback.print_exception(error.__cause__)
        print(f"error: {error}", file=sys.stderr)
        return 1


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

    _print(catalogue.show(arguments.lake, arguments.name), arguments.json)


def _datasets(arguments) -> None:
    from .runs import catalogue

    _print(catalogue.datasets(arguments.lake), arguments.json, "datasets")


def _expire(arguments) -> None:
    from .runs import catalogue

    answer = catalogue.expire(arguments.lake, arguments.dataset, arguments.keep, arguments.force)
    _print(answer, arguments.json)


def _compact(arguments) -> None:
    from . import lake
    from .data.compact import compact
    from .job import session

    spark = session(f"compact {arguments.dataset}")
    try:
        _print(compact(spark, lake.dataset_place(arguments.lake, arguments.dataset)), arguments.json)
    finally:
        spark.stop()


def _promote(arguments) -> None:
    from .quality import caveats
    from .runs import registry

    answer = registry.promote(arguments.lake, arguments.run, arguments.model, arguments.if_better)
    if arguments.if_better:
        caveats.warn_of_promotion(arguments.lake, arguments.run, answer)
    _print(answer, arguments.json)


def _challenge(arguments) -> None:
    from .runs import challenge

    answer = (
        challenge.end(arguments.lake, arguments.model)
        if arguments.end
        else challenge.challenge(arguments.lake, arguments.run, arguments.model, arguments.share)
    )
    _print(answer, arguments.json)


def _verdict(arguments) -> None:
    if arguments.page:
        from .serving.verdict_page import judged as judge
    else:
        from .serving.verdict import verdict as judge

    _print(judge(arguments.lake, arguments.model, arguments.act), arguments.json)


def _export(arguments) -> None:
    from .serving import export

    _print(export.export(arguments.lake, arguments.to, arguments.run, arguments.model), arguments.json)


def _serve(arguments) -> None:
    server.serve(arguments)


def _rollback(arguments) -> None:
    from .runs import registry

    _print(registry.rollback(arguments.lake, arguments.model), arguments.json)


def _print(value: list[dict] | dict, as_json: bool, what: str = "runs") -> None:
    """A table: a row for each item of a list, a line for each leaf of a dict."""
    if as_json:
        print(json.dumps(value))
        return
    if isinstance(value, dict):
        rows = list(leaves(value))
    elif value:
        rows = [tuple(value[0]), *(tuple(_cell(content) for content in row.values()) for row in value)]
    else:
        rows = [(f"no {what}",)]
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(content) -> str:
    if content is None:
        return ""
    return f"{content:.6g}" if isinstance(content, float) else str(content)


_COMMANDS = {
    "bigdl-jars": _bigdl_jars,
    "challenge": _challenge,
    "check": _check,
    "compact": _compact,
    "datasets": _datasets,
    "download": _download,
    "export": _export,
    "expire": _expire,
    "init": _init,
    "java-home": _java_home,
    "models": _models,
    "promote": _promote,
    "reference": _reference,
    "rollback": _rollback,
    "serve": _serve,
    "runs": _runs,
    "show": _show,
    "verdict": _verdict,
}

if __name__ == "__main__":
    sys.exit(main())
