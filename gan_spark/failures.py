"""A failure as the command line tells it: one line on stderr, an exit code, and a traceback where it is a defect."""

import contextlib
import logging
import re
import signal
import sys
import traceback

from .config import TaskFailure, UserError

log = logging.getLogger(__name__)

# The last line of a Python traceback, which may stand inside a Java message; frames are indented.
_LAST_OF_TRACEBACK = re.compile(r"Traceback \(most recent call last\):\n(?:(?:[ \t].*)?\n)*(\S.*)")
_LAKE_URL = re.compile(r"\b(?:file|dbfs|hdfs|s3a?|gs|wasbs?|abfss?):/[^\s,;'\"`()<>{}\[\]]+")

_STORES = ("s3fs", "gcsfs", "adlfs", "hdfs_native", "botocore", "aiobotocore", "aiohttp")  # their clients' packages


def report(error: Exception) -> int:
    """Prints the error to stderr; the exit code: 2 for a `UserError`, also one that a task of Spark raised, else 1.

    What failed in a task, in Java or on a rank is one line: a driver's traceback says nothing of it, and the task's own
    is long. Both are logged at level debug. A defect of the driver itself, which may not come a second time, is told
    with its traceback.
    """
    if isinstance(error, UserError):
        log.debug("where the request was refused:", exc_info=error)
        print(f"error: {error}", file=sys.stderr)
        return 2
    if text := _users_error(error):
        log.debug("where the task was refused:", exc_info=error)
        print(f"error: {text}", file=sys.stderr)
        return 2
    if isinstance(error, TaskFailure) or type(error).__module__.startswith("py4j.") or _java_stack(error):
        log.debug("where it failed:", exc_info=error)
        print(f"error: {summary(error)} (--verbose shows more)", file=sys.stderr)
        return 1
    if _is_of_a_store(error):
        log.debug("what was asked of the store:", exc_info=error)
        print(
            f"error: a store does not do as it is asked: {summary(error)}; once it does, run the same command again"
            " (--verbose shows more)",
            file=sys.stderr,
        )
        return 1
    traceback.print_exception(error)
    print(f"error: {summary(error)}", file=sys.stderr)
    return 1


def stopped(error: BaseException, number: int) -> int:
    """Prints to stderr that this signal ended the job, with the notes of `error`; the exit code that shells give it."""
    log.debug("where the signal came:", exc_info=error)
    reason = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    with contextlib.suppress(OSError):  # The terminal that was closed takes no more.
        print("error: " + "; ".join([reason, *getattr(error, "__notes__", [])]), file=sys.stderr, flush=True)
    return 128 + number


def _is_of_a_store(error: BaseException) -> bool:
    """Whether a client of a store raised it because of what the store answered, or did not."""
    names = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    kind = type(error).__module__.partition(".")[0]
    is_answer = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
    return kind in _STORES or (is_answer and any(name.partition(".")[0] in _STORES for name in names))


def _users_error(error: Exception) -> str | None:
    """The text of the `UserError` that a task raised, which Java hands on as text; None for any other error."""
    name, _, text = (_last_of_python(_without_frames(_java_stack(error))) or "").partition(": ")
    module, _, attribute = name.rpartition(".")
    kind = getattr(sys.modules.get(module), attribute, None)
    return text.strip() if isinstance(kind, type) and issubclass(kind, UserError) else None


def summary(error: Exception) -> str:
    """`Type: text` in one line; of an error of Java or of a Python task, that of the last cause that says something."""
    if stack := _java_stack(error):
        return _last_cause(stack)
    text = traceback.format_exception_only(error)[-1].strip()  # str(error) fails itself where Java has gone
    return " ".join(_without_package(text).split())


def _java_stack(error: Exception) -> str:
    """The stack trace of Java, which an error of Py4J or PySpark holds; empty for any other error."""
    package = type(error).__module__.partition(".")[0]
    if package == "pyspark":  # stackTrace in PySpark 3.4, _stackTrace in 3.5
        return getattr(error, "stackTrace", None) or getattr(error, "_stackTrace", None) or ""
    if package == "py4j" and hasattr(error, "java_exception"):
        text = "".join(traceback.format_exception_only(error))
        return re.sub(r"\A.*An error occurred while calling [^\n]*\n: ", "", text)
    return ""


def _last_cause(stack: str) -> str:
    """The Python error of a task; else the last cause that has a text; with the file, where only another line names it.

    An `EOFException` without a text is what remains of a Python worker that died: its cause says so.
    """
    messages = _without_frames(stack)
    cause = _last_of_python(messages)
    if cause is None:
        causes = [messages.partition("\n")[0], *re.findall(r"^Caused by: (.*)", messages, re.MULTILINE)]
        cause = next((text for text in reversed(causes) if re.search(r": \S", text)), causes[-1])
    urls = [url.rstrip(".:") for url in _LAKE_URL.findall(messages)]
    named = not urls or any(url in cause for url in urls)
    return _without_package(cause.strip()) + ("" if named else f" ({urls[-1]})")


def _without_frames(stack: str) -> str:
    """A stack trace of Java without its frames, which leaves what was said."""
    return "\n".join(line for line in stack.splitlines() if not re.match(r"\s+at |\s+\.\.\. \d+ more", line))


def _last_of_python(messages: str) -> str | None:
    """The last line of the last traceback of Python; None where there is none."""
    lines = _LAST_OF_TRACEBACK.findall(messages)
    return lines[-1] if lines else None


def _without_package(text: str) -> str:
    """`java.io.IOException: ...` as `IOException: ...`."""
    return re.sub(r"\A(?:[\w$]+\.)+([\w$]+)(?=:|\Z)", r"\1", text)
