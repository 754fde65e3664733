"""HDFS as a filesystem of fsspec's, by hdfs-native, which needs neither Java nor libhdfs.

What hdfs-native's own class for fsspec lacks here: names that hold `#`, `;` or `?`, files that pyarrow can write and
buffered readers can read, and the errors that Python has for files.
"""

import contextlib
import io
import os
import re
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import hdfs_native.fsspec
from fsspec.utils import stringify_path

from ..config import UserError

_SECONDS_TO_ANSWER = 10  # of a NameNode that refuses connections, as Java's client has it
_BUFFER_BYTES = 2**18
# Clients of this process, one for each NameNode: none is given up. fsspec forgets its filesystems in a process that is
# forked, as Horovod's driver forks one, and a client that ends there waits for threads that stayed with the parent.
_CLIENTS = []
# How hdfs-native writes down what a NameNode refused: the class of Java's exception, and its text with the stack.
_REFUSAL = re.compile(r'RPCError\("([\w.$]+)", "(.*)"\)', re.DOTALL)


class NotAllowed(UserError, PermissionError):
    """A NameNode does not let this user do that."""


class HdfsFileSystem(hdfs_native.fsspec.HdfsFileSystem):
    """The filesystem of a NameNode or name service, `root`: "hdfs://host:port", "hdfs://service", or "hdfs://" for
    `fs.defaultFS` of the configuration in HADOOP_CONF_DIR.

    A rename is atomic: a file takes the place of a file, and nothing that of a folder. Raises `UserError` where there
    is no such NameNode, or none that answers.
    """

    def __init__(self, root: str, **options):
        # Whoever runs an executor's process, Spark's Java acts as this user there.
        if user := os.environ.get("SPARK_USER"):
            os.environ.setdefault("HADOOP_USER_NAME", user)
        try:
            place = urlsplit(root)
            super().__init__(place.hostname, place.port, **options)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{root}: no NameNode by that name ({_words(error)}); expected hdfs://HOST:PORT/..., or the name"
                " service or fs.defaultFS of the core-site.xml and hdfs-site.xml in the folder that HADOOP_CONF_DIR"
                f" names ({os.environ.get('HADOOP_CONF_DIR') or 'not set'})"
            ) from error
        _CLIENTS.append(self.client)
        self.client: Any = _Client(self.client)
        if place.hostname and place.port:
            _check_answers(root, place.hostname, place.port)

    @classmethod
    def _strip_protocol(cls, path) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(item) for item in path]
        return re.sub(r"\Ahdfs://[^/]*", "", stringify_path(path)).rstrip("/") or "/"

    def exists(self, path, **options) -> bool:
        try:
            return super().exists(path, **options)
        except NotADirectoryError:
            return False

    def mv(self, path1, path2, **_) -> None:
        try:
            super().mv(path1, path2)
        except FileExistsError:
            if self.isdir(path1) or self.isdir(path2):
                raise
            super().mv(path1, path2, overwrite=True)

    def place(self, path1, path2) -> bool:
        """Renames a file unless something is at `path2`; whether it did. Of several that try at the same moment the
        NameNode lets one.
        """
        try:
            super().mv(path1, path2)
            return True
        except FileExistsError:
            return False

    def _open(self, path, mode="rb", **_) -> Any:
        path = self._strip_protocol(path)
        if mode == "rb":
            return io.BufferedReader(_Reader(self.client.read(path)), _BUFFER_BYTES)
        if mode == "wb":
            return io.BufferedWriter(_Writer(super()._open(path, mode)), _BUFFER_BYTES)
        raise ValueError(f"{path}: files of HDFS are opened here by mode rb or wb, not {mode!r}")


def split(url: str) -> tuple[str, str]:
    """The root of an `hdfs:` URL, as `HdfsFileSystem` takes it, and the path inside it."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host}", (slash + path).rstrip("/") or "/"


def _check_answers(root: str, host: str, port: int) -> None:
    """`UserError` where nothing listens there: hdfs-native would try for three minutes at every call."""
    deadline = time.monotonic() + _SECONDS_TO_ANSWER
    while True:
        try:
            socket.create_connection((host, port), timeout=_SECONDS_TO_ANSWER).close()
            return
        except OSError as error:
            if isinstance(error, socket.gaierror) or time.monotonic() > deadline:
                raise UserError(
                    f"{root}: no NameNode answers there ({error.strerror or error}); expected the address that"
                    " fs.defaultFS has in the cluster's core-site.xml, a NameNode that runs, and a network that leads"
                    " to it from every machine of the job"
                ) from error
        time.sleep(1)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Errors of hdfs-native become those that Python has for files, in one line."""
    try:
        yield
    except NotImplementedError:
        raise
    except OSError as error:
        raise type(error)(_words(error)) from None
    except RuntimeError as error:
        raise _refusal(error) from None


def _refusal(error: RuntimeError) -> OSError:
    match = _REFUSAL.search(str(error))
    kind = match[1].rpartition(".")[2] if match else ""
    if kind == "AccessControlException":
        return NotAllowed(
            f"{_words(error)}; ask who owns it for the right, or name a place of your own (without Kerberos"
            " HADOOP_USER_NAME says who asks)"
        )
    if kind == "ParentNotDirectoryException":
        return NotADirectoryError(_words(error))
    return OSError(f"{kind}: {_words(error)}" if kind else _words(error))


def _words(error: Exception) -> str:
    """What an error says, without Java's stack."""
    text = str(error)
    if match := _REFUSAL.search(text):
        text = match[2].replace("\\n", "\n").replace("\\t", "\t").replace('\\"', '"')
    return text.partition("\n")[0].strip()


class _Client:
    """hdfs-native's client, with the errors that Python has for files."""

    def __init__(self, client: hdfs_native.Client):
        self._client = client

    def __getattr__(self, name: str):
        method = getattr(self._client, name)

        def call(*arguments, **options):
            with _errors():
                result = method(*arguments, **options)
                return list(result) if name == "list_status" else result  # which asks only as it is read

        return call


class _Reader(io.RawIOBase):
    def __init__(self, reader):
        self._reader = reader

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        with _errors():
            data = self._reader.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _errors():
            self._reader.seek(offset, whence)
            return self._reader.tell()

    def tell(self) -> int:
        return self._reader.tell()


class _Writer(io.RawIOBase):
    def __init__(self, writer):
        self._writer, self._bytes = writer, 0

    def writable(self) -> bool:
        return True

    def write(self, buffer) -> int:
        with _errors():
            count = self._writer.write(buffer)
        self._bytes += count
        return count

    def tell(self) -> int:
        return self._bytes

    def close(self) -> None:
        if not self.closed:
            try:
                with _errors():
                    self._writer.close()
            finally:
                super().close()
