"""Every model, by name."""

import difflib

from ..config import UserError
from .base import GenerativeModel
from .dcgan import DCGAN
from .lenet import LeNet
from .vae import VAE

__all__ = ["MODELS", "GenerativeModel", "config_class", "find"]

MODELS = {"dcgan": DCGAN, "lenet": LeNet, "vae": VAE}


def find(name: str) -> type:
    """The model's class; `UserError` names the nearest one that exists."""
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"model.name = {name!r}: no such model{hint} (known: {', '.join(sorted(MODELS))})")
    return MODELS[name]


def config_class(name: str) -> type:
    return find(name).Config
