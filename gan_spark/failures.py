"""A failure as the command line tells it: one line on stderr, an exit code, and a traceback where it is a defect."""

import logging
import re
import sys
import traceback

from .config import UserError

log = logging.getLogger(__name__)

# The last line of a Python traceback, which may stand inside a Java message; frames are indented.
_LAST_OF_TRACEBACK = re.compile(r"Traceback \(most recent call last\):\n(?:(?:[ \t].*)?\n)*(\S.*)")
_LAKE_URL = re.compile(r"\b(?:file|dbfs|hdfs|s3a?|gs|wasbs?|abfss?):/[^\s,;'\"`()<>{}\[\]]+")


def report(error: Exception) -> int:
    """Prints the error to stderr; the exit code: 2 for a `UserError`, else 1, with the traceback above the line."""
    if isinstance(error, UserError):
        log.debug("where the request was refused:", exc_info=error)
        print(f"error: {error}", file=sys.stderr)
        return 2
    traceback.print_exception(error)
    print(f"error: {summary(error)}", file=sys.stderr)
    return 1


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
    messages = "\n".join(line for line in stack.splitlines() if not re.match(r"\s+at |\s+\.\.\. \d+ more", line))
    if errors := _LAST_OF_TRACEBACK.findall(messages):
        cause = errors[-1]
    else:
        causes = [messages.partition("\n")[0], *re.findall(r"^Caused by: (.*)", messages, re.MULTILINE)]
        cause = next((text for text in reversed(causes) if re.search(r": \S", text)), causes[-1])
    urls = [url.rstrip(".:") for url in _LAKE_URL.findall(messages)]
    named = not urls or any(url in cause for url in urls)
    return _without_package(cause.strip()) + ("" if named else f" ({urls[-1]})")


def _without_package(text: str) -> str:
    """`java.io.IOException: ...` as `IOException: ...`."""
    return re.sub(r"\A(?:[\w$]+\.)+([\w$]+)(?=:|\Z)", r"\1", text)
