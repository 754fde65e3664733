"""Run configs: the errors, the options, the sections, and the loader that checks them."""

from .errors import NotFetched, TaskFailure, UserError
from .imports import imported
from .loader import check_sections, differences, leaves, load, new_images, parse, replaced, resolved
from .names import check_name, check_path
from .options import option
from .sections import (
    Config,
    Dream,
    Enlarge,
    Evaluate,
    Featurize,
    Finetune,
    Generate,
    Ingest,
    Inpaint,
    Latent,
    LeNet,
    Predict,
    Promote,
    Stream,
    Tracking,
    Train,
)

__all__ = [
    "Config",
    "Dream",
    "Enlarge",
    "Evaluate",
    "Featurize",
    "Finetune",
    "Generate",
    "Ingest",
    "Inpaint",
    "Latent",
    "LeNet",
    "NotFetched",
    "Predict",
    "Promote",
    "Stream",
    "TaskFailure",
    "Tracking",
    "Train",
    "UserError",
    "check_name",
    "check_path",
    "check_sections",
    "differences",
    "imported",
    "leaves",
    "load",
    "new_images",
    "option",
    "parse",
    "replaced",
    "resolved",
]
