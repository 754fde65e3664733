"""Layout of the lake: where its runs, datasets and tables are. A name that could leave its folder is refused."""

import re

from ..config import Config, check_name, check_path
from .files import join, to_url


def _place(root: str, folder: str, key: str, name: str, suffix: str = "") -> str:
    return join(to_url(root), folder, check_name(key, name) + suffix)


def run_url(root: str, name: str) -> str:
    """URL of the run `name` of the lake at `root` (a path or URL)."""
    return _place(root, "runs", "run", name)


def model_url(root: str, name: str) -> str:
    """URL of the registry's file of the model `name`."""
    return _place(root, "models", "model", name, ".json")


def dataset_url(config: Config) -> str:
    return dataset_place(config.lake, config.dataset)


def dataset_place(root: str, name: str) -> str:
    """URL of the dataset `name` of the lake at `root` (a path or URL)."""
    return _place(root, "datasets", "dataset", name)


def at_snapshot(url: str, number: int) -> str:
    """What stands for one snapshot of the dataset at `url`, wherever a dataset is read: `<url>@<number>`."""
    return f"{split_snapshot(url)[0]}@{number}"


def split_snapshot(url: str) -> tuple[str, int]:
    """(URL of the dataset's folder, number of the snapshot; 0 for the newest), of what `at_snapshot` gives or a URL."""
    match = re.fullmatch(r"(.+/[^/@]+)@([1-9]\d*)", url)
    return (match[1], int(match[2])) if match else (url, 0)


def table_url(config: Config) -> str:
    """URL of the table of the config's generated images: `<lake>/generated/<run>` unless it says otherwise."""
    name = config.generate.table
    if "/" not in name:
        return _place(config.lake, "generated", *(("generate.table", name) if name else ("run", config.run)))
    check_path("generate.table", name, name)
    return to_url(name)


def predictions_url(config: Config) -> str:
    return _place(config.lake, "predictions", "run", config.run)


def pipeline_url(config: Config) -> str:
    return _place(config.lake, "pipelines", "run", config.run)


def report_url(config: Config) -> str:
    return _place(config.lake, "reports", "run", config.run, ".html")
