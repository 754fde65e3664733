"""Every model, by name; and models outside of the package, as "package.module:Class".

To look a model up outside of the package imports its module, which runs it. So that nobody who can write to the lake
decides what is imported, `find` does that only for names that this process's user named (`config_class`): in a config,
or on the command line.
"""

import dataclasses
import difflib
import inspect
import json

from ..config import UserError, imported
from .attributes import Attributes
from .base import GenerativeModel, TrainedModel
from .began import BEGAN
from .cgan import CGAN
from .classifier import Classifier
from .cyclegan import CycleGAN
from .dcgan import DCGAN
from .diffusion import Diffusion
from .discogan import DiscoGAN
from .gan import GAN
from .lenet import LeNet
from .srgan import SRGAN
from .ssgan import SSGAN
from .stackgan1 import StackGAN1
from .stackgan2 import StackGAN2
from .text import TextEncoder
from .vae import VAE
from .wgan_gp import WGANGP

__all__ = ["MODELS", "GenerativeModel", "TrainedModel", "config_class", "describe", "find", "recorded_config", "title"]

MODELS = {
    "attributes": Attributes,
    "began": BEGAN,
    "cgan": CGAN,
    "classifier": Classifier,
    "cyclegan": CycleGAN,
    "dcgan": DCGAN,
    "diffusion": Diffusion,
    "discogan": DiscoGAN,
    "gan": GAN,
    "lenet": LeNet,
    "srgan": SRGAN,
    "ssgan": SSGAN,
    "stackgan1": StackGAN1,
    "stackgan2": StackGAN2,
    "text_encoder": TextEncoder,
    "vae": VAE,
    "wgan_gp": WGANGP,
}


# Names outside of the package that came from this process's user, not from the lake.
_named_by_user: set[str] = set()


def find(name: str) -> type:
    """The model's class. `UserError` names the nearest one that exists, or says why one outside of the package is not
    looked up.
    """
    if ":" in name:
        if name not in _named_by_user:
            raise UserError(
                f"model {name!r}: only a record in the lake names this code outside of gan_spark, which is not enough"
                " to import it: name it in your own config (model.name = ...) to use it"
            )
        return _outside(name)
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"model.name = {name!r}: no such model{hint} (known: {', '.join(sorted(MODELS))})")
    return MODELS[name]


def config_class(name: str) -> type:
    """The `Config` of a model that the user's own config or command line names: outside of the package,
    "package.module:Class" is imported, and from then on `find` gives it.
    """
    if ":" in name:
        _named_by_user.add(name)
    return find(name).Config


def recorded_config(name: str) -> type:
    """The `Config` of a model that a record in the lake names."""
    return find(name).Config


def _outside(name: str) -> type:
    """The class that "package.module:Class" names; `UserError` where it is no model."""
    model = imported("model.name", name)
    if not (isinstance(model, type) and issubclass(model, TrainedModel)):
        kind = f"class {model.__name__}" if isinstance(model, type) else f"an object of type {type(model).__name__}"
        raise UserError(
            f"model.name = {name!r}: expected a subclass of TrainedModel or GenerativeModel of gan_spark.models, found"
            f" {kind}"
        )
    config = getattr(model, "Config", None)
    if not (isinstance(config, type) and dataclasses.is_dataclass(config) and config.__dataclass_params__.frozen):
        raise UserError(
            f"model.name = {name!r}: expected a class attribute Config that is a frozen dataclass, found {config!r}"
        )
    missing = {"name", "image_size", "channels"} - {field.name for field in dataclasses.fields(config)}
    if missing:
        raise UserError(f"model.name = {name!r}: its Config has no field {', '.join(sorted(missing))}")
    required = [field.name for field in dataclasses.fields(config) if field.default is dataclasses.MISSING]
    if required:
        raise UserError(
            f"model.name = {name!r}: expected a default for every field of its Config, found none for"
            f" {', '.join(required)}"
        )
    return model


def title(name: str) -> str:
    """What the model is, and its paper."""
    return " ".join((inspect.getdoc(inspect.getmodule(find(name))) or name).partition("\n\n")[0].split())


def describe(name: str) -> str:
    """The model's paper, what it reads and takes, and its config keys, from its code. `name` is the user's own."""
    config = config_class(name)()
    model = find(name)
    lines = [f"{name}: {title(name)}"]
    lines.append(f"  reads     {', '.join(model.reads(config))}")
    if issubclass(model, GenerativeModel):
        lines.append(
            f"  generate  a seed{''.join(f', {key}' for key in model.takes(config)[:1])}"
            + (f" (or {', '.join(model.takes(config)[1:])})" if model.takes(config)[1:] else "")
        )
    for field in dataclasses.fields(config):
        if field.name != "name":
            choices, meaning = field.metadata.get("choices"), field.metadata.get("help", "")
            among = f" ({', '.join(map(str, choices))})" if choices else ""
            lines.append(f"  {'model.' + field.name:<28}{json.dumps(field.default):<18}{meaning}{among}")
    return "\n".join(lines)
