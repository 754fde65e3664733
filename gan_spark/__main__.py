"""python -m gan_spark: what is not a job."""

import argparse
import sys

from .config import UserError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gan_spark")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("java-home", help="print a JAVA_HOME that Spark 3.4 runs on, for spark-submit")
    commands.add_parser("bigdl-jars", help="print BigDL's jars, for spark-submit --jars")
    listing = commands.add_parser("models", help="every model with its paper, inputs and config keys")
    listing.add_argument("name", nargs="*", help="these alone")
    fetch = commands.add_parser("download", help="fetch a well-known image set, with its checksum")
    fetch.add_argument("name")
    fetch.add_argument("folder", help="path or URL")
    arguments = parser.parse_args()
    try:
        if arguments.command == "java-home":
            import os
            import shutil

            from .job import java_home

            print(java_home() or os.environ.get("JAVA_HOME") or os.path.dirname(os.path.dirname(os.path.realpath(shutil.which("java")))))
        elif arguments.command == "bigdl-jars":
            from .ml.lenet import jars

            print(",".join(jars()))
        elif arguments.command == "models":
            from .models import MODELS, describe

            print("\n\n".join(describe(name) for name in arguments.name or sorted(MODELS)))
        else:
            from .downloads import download

            print("\n".join(download(arguments.name, arguments.folder)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
