"""Downloads of well-known image sets from their homes, checked by their checksums.

Sizes and SHA-256 sums were published by TensorFlow Datasets (url_checksums); Fashion-MNIST's and
CIFAR-10 Python's MD5 sums by torchvision and the CIFAR page.
"""

import dataclasses
import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request

from .. import lake, progress
from ..config import UserError


@dataclasses.dataclass(frozen=True)
class Remote:
    url: str
    digest: str  # hexadecimal; its length tells SHA-256 from MD5

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


_MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_CYCLEGAN = "https://people.eecs.berkeley.edu/~taesung_park/CycleGAN/datasets/"

SETS: dict[str, tuple[Remote, ...]] = {
    "mnist": (
        Remote(
            _MNIST + "train-images-idx3-ubyte.gz", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
        ),
        Remote(
            _MNIST + "train-labels-idx1-ubyte.gz", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
        ),
        Remote(
            _MNIST + "t10k-images-idx3-ubyte.gz", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
        ),
        Remote(
            _MNIST + "t10k-labels-idx1-ubyte.gz", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
        ),
    ),
    "fashion-mnist": (
        Remote(
            _FASHION + "train-images-idx3-ubyte.gz", "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
        ),
        Remote(
            _FASHION + "train-labels-idx1-ubyte.gz", "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
        ),
        Remote(
            _FASHION + "t10k-images-idx3-ubyte.gz", "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
        ),
        Remote(
            _FASHION + "t10k-labels-idx1-ubyte.gz", "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
        ),
    ),
    "cifar10": (
        Remote(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
    "cifar10-python": (
        Remote("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
    ),
    "flower-photos": (
        Remote(
            "http://download.tensorflow.org/example_images/flower_photos.tgz",
            "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
        ),
    ),
    "lfw": (
        Remote(
            "http://vis-www.cs.umass.edu/lfw/lfw.tgz",
            "055f7d9c632d7370e6fb4afc7468d40f970c34a80d4c6f50ffec63f5a8d536c0",
        ),
    ),
    "apple2orange": (
        Remote(_CYCLEGAN + "apple2orange.zip", "845a191e9af8926408ea597001cd03a452e3300a1f44a79fe329b3d59f6e3eb8"),
    ),
    "horse2zebra": (
        Remote(_CYCLEGAN + "horse2zebra.zip", "a74d9d392eecca9966b51287a76ca126af473d9de4f3e8fc0e9cda08fa1730a1"),
    ),
    "monet2photo": (
        Remote(_CYCLEGAN + "monet2photo.zip", "88f91b00fc228f97c9411fbf1880ec1d119c98f1722e4cfcfaa2fb35fac05b04"),
    ),
    "summer2winter": (
        Remote(
            _CYCLEGAN + "summer2winter_yosemite.zip", "167fe1726807a9d22bd106b4a6c0bd7953b688af924ac1bf967439c4961e49f9"
        ),
    ),
    "vangogh2photo": (
        Remote(_CYCLEGAN + "vangogh2photo.zip", "362c3473e70be0944bda08d49d660eafdc2854df55d697835b8186d1d79caaff"),
    ),
}


def download(name: str, folder: str) -> list[str]:
    """Fetches the set `name` into `folder` (path or URL) and returns the files' URLs.

    A file that is there and matches its checksum is left alone; a local partial file is resumed.
    Raises `UserError` for an unknown set, no network, or bytes that do not match.
    """
    if name not in SETS:
        raise UserError(f"download {name!r}: unknown set (known: {', '.join(SETS)})")
    return [fetch(remote, folder) for remote in SETS[name]]


def fetch(remote: Remote, folder: str, timeout: float = 30) -> str:
    """Fetches one file whole into `folder`; see `download`."""
    target = lake.join(lake.to_url(folder), remote.name)
    fs, path = lake.filesystem(target)
    if fs.exists(path):
        with fs.open(path, "rb") as stream:
            if _digest(stream, remote.digest) == remote.digest:
                return target
    if target.startswith("file:"):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _fetch_to(remote, path + ".part", timeout)
        os.replace(path + ".part", path)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            part = os.path.join(temporary, remote.name)
            _fetch_to(remote, part, timeout)
            fs.put_file(part, path)
    return target


def _digest(stream, expected: str) -> str:
    digest = hashlib.new("sha256" if len(expected) == 64 else "md5")
    while block := stream.read(2**20):
        digest.update(block)
    return digest.hexdigest()


def _fetch_to(remote: Remote, part: str, timeout: float) -> None:
    offset = os.path.getsize(part) if os.path.exists(part) else 0
    request = urllib.request.Request(remote.url, headers={"Range": f"bytes={offset}-"} if offset else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            # A server without ranges answers 200 with the whole file: start over.
            with (
                progress.part(remote.name, total=response.length or 0, unit="bytes") as add,
                open(part, "ab" if response.status == 206 else "wb") as out,
            ):
                while block := response.read(2**20):
                    with lake.writing(part):
                        out.write(block)
                    add(len(block))
            if response.length:
                raise OSError(f"connection lost with {response.length} bytes to come")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: nothing is left to fetch; the checksum decides.
            raise UserError(f"{remote.url}: the server answered {error.code} {error.reason}") from error
    except UserError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"{remote.url}: not reached ({error}); {part} keeps what came, run the same command again to resume"
        ) from error
    with open(part, "rb") as stream:
        digest = _digest(stream, remote.digest)
    if digest != remote.digest:
        os.remove(part)
        raise UserError(f"{remote.url}: checksum {digest}, expected {remote.digest}; the partial file was removed")
