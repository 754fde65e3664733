"""Every model, by name."""

import dataclasses
import difflib
import inspect
import json

from ..config import UserError
from .attributes import Attributes
from .base import GenerativeModel
from .began import BEGAN
from .cgan import CGAN
from .classifier import Classifier
from .cyclegan import CycleGAN
from .dcgan import DCGAN
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

__all__ = ["MODELS", "GenerativeModel", "config_class", "describe", "find", "title"]

MODELS = {
    "attributes": Attributes,
    "began": BEGAN,
    "cgan": CGAN,
    "classifier": Classifier,
    "cyclegan": CycleGAN,
    "dcgan": DCGAN,
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


def find(name: str) -> type:
    """The model's class; `UserError` names the nearest one that exists."""
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"model.name = {name!r}: no such model{hint} (known: {', '.join(sorted(MODELS))})")
    return MODELS[name]


def config_class(name: str) -> type:
    return find(name).Config


def title(name: str) -> str:
    """What the model is, and its paper."""
    return " ".join(inspect.getmodule(find(name)).__doc__.partition("\n\n")[0].split())


def describe(name: str) -> str:
    """The model's paper, what it reads and takes, and its config keys, from its code."""
    model = find(name)
    config = model.Config()
    lines = [f"{name}: {title(name)}"]
    lines.append(f"  reads     {', '.join(model.reads(config))}")
    if issubclass(model, GenerativeModel):
        lines.append(
            f"  generate  a seed{''.join(f', {key}' for key in model.takes(config)[:1])}"
            + (f" (or {', '.join(model.takes(config)[1:])})" if model.takes(config)[1:] else "")
        )
    for field in dataclasses.fields(config):
        if field.name != "name":
            choices = field.metadata["choices"]
            among = f" ({', '.join(map(str, choices))})" if choices else ""
            lines.append(f"  {'model.' + field.name:<28}{json.dumps(field.default):<18}{field.metadata['help']}{among}")
    return "\n".join(lines)
