"""Faults in what is read: files that mean harm, that are damaged, or that are odd, each made for real."""

import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf

from gan_spark import networks
from gan_spark.config import UserError

# --- weights and networks in files -----------------------------------------------------


def dense() -> tf.keras.Model:
    tf.keras.utils.set_random_seed(3)
    return tf.keras.Sequential([tf.keras.Input([4]), tf.keras.layers.Dense(3, name="dense")])


def kernel_of(file) -> str:
    """Path of the dense layer's kernel in a file of weights, of either format."""
    paths = []
    file.visititems(lambda name, item: paths.append(name) if getattr(item, "shape", None) == (4, 3) else None)
    return paths[0]


def link(file, path: str, other: str) -> None:
    with h5py.File(other, "w") as secret:
        secret["kernel"] = np.full((4, 3), 7, np.float32)
    del file[path]
    file[path] = h5py.ExternalLink(other, "/kernel")


def values_elsewhere(file, path: str, other: str) -> None:
    np.full((4, 3), 7, np.float32).tofile(other)
    del file[path]
    file.create_dataset(path, (4, 3), np.float32, external=other)


def virtual(file, path: str, other: str) -> None:
    with h5py.File(other, "w") as secret:
        secret["kernel"] = np.full((4, 3), 7, np.float32)
    layout = h5py.VirtualLayout((4, 3), np.float32)
    layout[:] = h5py.VirtualSource(other, "kernel", (4, 3))
    del file[path]
    file.create_virtual_dataset(path, layout)


def bomb(file, path: str, other: str) -> None:
    """A terabyte of zeros in a few bytes."""
    del file[path]
    file.create_dataset(path, (2**40 // 4,), np.float32, chunks=(2**20,), compression="gzip")


def referred(file, path: str, other: str) -> None:
    """An array that hangs on nothing, to which an attribute refers in place of a name."""
    group = file[path].parent
    np.full((4, 3), 7, np.float32).tofile(other)
    hidden = file.create_dataset(None, (4, 3), np.float32, external=other)
    group.attrs.create("weight_names", np.array([hidden.ref], h5py.ref_dtype), dtype=h5py.ref_dtype)


def change_weights(path: str, change, other: str) -> None:
    """`change(file, path of the kernel, other)` on the arrays in a model's file."""
    if path.endswith(".h5"):
        with h5py.File(path, "r+") as file:
            change(file, kernel_of(file), other)
        return
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    inner = path + ".inner"
    with open(inner, "wb") as out:
        out.write(parts["model.weights.h5"])
    change_weights_of_inner(inner, change, other)
    with open(inner, "rb") as file:
        parts["model.weights.h5"] = file.read()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def change_weights_of_inner(path: str, change, other: str) -> None:
    with h5py.File(path, "r+") as file:
        change(file, kernel_of(file), other)


@pytest.mark.fault(
    "data",
    "an HDF5 file of weights, or one in a .keras file, whose arrays are in other files, or a thousand times its size",
    "refused before anything of it is read; the error names the array and where it leads",
)
@pytest.mark.parametrize(
    "change, found",
    [
        (link, "/dense/.*, a link to '/kernel' in the file '.*secret'"),
        (values_elsewhere, "whose values are in the file '.*secret'"),
        (virtual, "whose values are in other datasets"),
        (referred, "with an attribute that refers to other objects"),
        (bomb, r"arrays of 1,099,\d{3},\d{3},\d{3} bytes in a file of"),
    ],
)
@pytest.mark.parametrize("kind", ["network.keras", "network.h5", "weights.h5", "new.weights.h5"])
def test_weights_that_lead_out_of_their_file_are_refused(tmp_path, kind, change, found):
    path, secret, network = str(tmp_path / kind), str(tmp_path / "secret"), dense()
    is_whole = kind.startswith("network")
    (network.save if is_whole else network.save_weights)(path)
    change_weights(path, change, secret)
    with pytest.raises(
        UserError, match=f"{kind}: expected a file that holds a network's arrays itself, found .*{found}"
    ):
        if is_whole:
            networks.load_file("file://" + path)
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tf.keras.applications, "Xception", lambda weights: dense())
                networks.load("Xception", path)


@pytest.mark.fault(
    "data",
    "a .keras file that unpacks to a thousand times its size",
    "refused before it is unpacked; the error states both sizes",
)
def test_a_network_that_unpacks_to_a_thousand_times_its_size_is_refused(tmp_path):
    path = str(tmp_path / "network.keras")
    dense().save(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("assets/zeros", bytes(200 * 2**20))
    with pytest.raises(UserError, match=r"network.keras: expected a file .* found 209,\d{3},\d{3} bytes packed into 2"):
        networks.load_file("file://" + path)
