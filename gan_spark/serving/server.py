"""The command `gan-spark serve`: arguments, the first version, the server until a signal ends it."""

import argparse
import logging
import os
import sys

from .. import lake, process
from ..config import UserError
from . import limits

log = logging.getLogger(__name__)
_SWITCH = 0.0005  # seconds, after which a thread that computes lets the one that speaks HTTP have its turn
_GRACE = 60  # seconds in which what was begun is finished, after a signal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", metavar="NAME", help="the promoted version of this registered model")
    which.add_argument("--network", metavar="NAME", help="a Keras network, with its 1,000 classes of ImageNet")
    parser.add_argument("--weights", default="imagenet", metavar="FILE", help="of --network (default: %(default)s)")
    parser.add_argument("--class-index", default="", metavar="FILE", help="names of its classes, as Keras's JSON file")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="that compute (default: one a core)"
    )
    parser.add_argument("--token-file", default="", metavar="FILE", help="file with the token that requests must have")
    parser.add_argument(
        "--log-share",
        type=float,
        default=1.0,
        metavar="X",
        help="share of the requests that is recorded in <lake>/served/<model>; 0 for none (default: %(default)s)",
    )
    parser.add_argument("--log-images", action="store_true", help="record the images that are sent, too")
    limits.add_arguments(parser)


def serve(arguments: argparse.Namespace) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what was begun."""
    bounds, token = limits.of(arguments), _token(arguments.token_file)
    _check(arguments)
    _check_installed()
    import uvicorn

    from . import json_log
    from .app import application
    from .metrics import Metrics
    from .protocol import limited
    from .versions import Versions

    json_log.configure()
    set_threads(arguments.threads)
    sys.setswitchinterval(_SWITCH)
    metrics = Metrics()
    if arguments.network:
        from .keras_network import Single

        versions = Single(
            arguments.network, arguments.weights, arguments.class_index, bounds, arguments.threads, metrics
        )
    else:
        versions = Versions(arguments.lake, arguments.model, bounds, arguments.threads, metrics)
    versions.load_first()
    config = uvicorn.Config(
        application(versions, bounds, metrics, token, _recording(arguments)),
        host=arguments.host,
        port=arguments.port,
        http=limited(bounds.receive_seconds, bounds.max_connections),
        ws="none",
        loop="uvloop",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=max(5, bounds.receive_seconds),
        timeout_graceful_shutdown=_GRACE,
    )
    log.info("listening on http://%s:%d", arguments.host, arguments.port)
    uvicorn.Server(config).run()


def _check(arguments: argparse.Namespace) -> None:
    if not 0 <= arguments.log_share <= 1:
        raise UserError(f"--log-share {arguments.log_share:g}: expected 0 to 1")
    for name, low, high in (("port", 0, 65535), ("threads", 1, 1024)):
        if not low <= getattr(arguments, name) <= high:
            raise UserError(f"--{name} {getattr(arguments, name)}: expected {low} to {high}")


def _check_installed() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"the service needs {error.name}, which is not installed; install gan-spark[serve]") from error


def _recording(arguments: argparse.Namespace):
    """What records requests; None where none are."""
    from .recording import Recording
    from .records import Records, check, url

    if arguments.network or not arguments.log_share:
        return None
    place = url(arguments.lake, arguments.model)
    check(place)
    return Recording(Records(place), arguments.log_share, arguments.log_images)


def _token(path: str) -> str:
    if not path:
        return ""
    try:
        token = lake.read_bytes(lake.to_url(path)).decode("ascii").strip()
    except FileNotFoundError:
        raise UserError(f"--token-file {path}: no such file") from None
    except UnicodeDecodeError:
        token = ""
    if len(token) < 16 or not token.isprintable() or " " in token:
        raise UserError(f"--token-file {path}: expected one line of at least 16 printable ASCII characters, no spaces")
    return token


def set_threads(threads: int) -> None:
    """One thread within an operation, as in the tasks of the batch job, and so many operations at once."""
    import tensorflow as tf

    process.set_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
