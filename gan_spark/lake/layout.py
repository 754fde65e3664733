"""Layout of the lake: where its runs, datasets and tables are."""

from ..config import Config
from .files import join, to_url


def run_url(root: str, name: str) -> str:
    """URL of the run `name` of the lake at `root` (a path or URL)."""
    return join(to_url(root), "runs", name)


def dataset_url(config: Config) -> str:
    return join(to_url(config.lake), "datasets", config.dataset)


def table_url(config: Config) -> str:
    """URL of the table of the config's generated images: `<lake>/generated/<run>` unless it says otherwise."""
    name = config.generate.table or config.run
    return to_url(name) if "/" in name else join(to_url(config.lake), "generated", name)
