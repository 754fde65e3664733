"""Every model, by name."""

import difflib

from ..config import UserError
from .base import GenerativeModel
from .began import BEGAN
from .cgan import CGAN
from .cyclegan import CycleGAN
from .dcgan import DCGAN
from .discogan import DiscoGAN
from .gan import GAN
from .lenet import LeNet
from .ssgan import SSGAN
from .vae import VAE
from .wgan_gp import WGANGP

__all__ = ["MODELS", "GenerativeModel", "config_class", "find"]

MODELS = {
    "began": BEGAN,
    "cgan": CGAN,
    "cyclegan": CycleGAN,
    "dcgan": DCGAN,
    "discogan": DiscoGAN,
    "gan": GAN,
    "lenet": LeNet,
    "ssgan": SSGAN,
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
