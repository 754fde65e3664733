"""Append: 1% more images added to a dataset, against ingesting all of it anew.

A table of PNG images, 300,000 unless --rows says otherwise, is ingested; then 1% more images are in it. They come into
the dataset by `ingest.mode = "append"` and by the same ingest anew, in turn, in one Spark session, after a small run of
each that is not counted: what is compared is what a job does beyond its start. The append is measured twice: of the
table of the new rows alone, as they arrive, which is the ratio, and of the whole table, in which it has to find them.

The images are Fashion-MNIST's 60,000, each shifted by another pixel as often as it takes.

    python benchmarks/append.py
"""

import os
import shutil
import time

import common

CHUNK = 10_000


def write_table(data: str, folder: str, first: int, last: int) -> str:
    """A Parquet table of PNG images number `first` to `last`, in files of CHUNK rows."""
    import cv2
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    images, labels = common.read_idx(data, "train")
    os.makedirs(folder, exist_ok=True)
    for start in range(first, last, CHUNK):
        numbers = range(start, min(start + CHUNK, last))
        pixels = (np.roll(images[n % 60_000], n // 60_000, axis=1) for n in numbers)
        table = {
            "id": [f"image {n:07d}" for n in numbers],
            "content": [cv2.imencode(".png", image)[1].tobytes() for image in pixels],
            "label": [int(labels[n % 60_000]) for n in numbers],
        }
        pq.write_table(pa.table(table), os.path.join(folder, f"rows-{start:08d}.parquet"))
    return folder


def together(folder: str, *parts: str) -> str:
    """A folder with the files of others, as links."""
    os.makedirs(folder, exist_ok=True)
    for part in parts:
        for name in os.listdir(part):
            os.link(os.path.join(part, name), os.path.join(folder, name))
    return folder


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rows", type=int, default=300_000, help="rows that are there before (default: %(default)s)")
    arguments = common.arguments(parser)
    from gan_spark import job
    from gan_spark.data import ingest

    with common.lake(arguments) as lake:
        spark = job.session("benchmark: append")
        rows, more = arguments.rows, arguments.rows // 100
        common.say(f"writing a table of {rows + more:,} images")
        before = write_table(arguments.data, os.path.join(lake, "before"), 0, rows)
        arrived = write_table(arguments.data, os.path.join(lake, "arrived"), rows, rows + more)
        whole = together(os.path.join(lake, "whole"), before, arrived)

        def ingested(path: str, dataset: str, mode: str = "replace") -> dict:
            options = {"source": "table", "path": path, "label_column": "label", "mode": mode}
            config = common.config(lake, path, dataset=dataset, ingest=options)
            return ingest.ingest(spark, config)

        def seconds(path: str, dataset: str, mode: str) -> float:
            if mode == "append":  # to the dataset as it was before
                shutil.rmtree(f"{lake}/datasets/{dataset}", ignore_errors=True)
                shutil.copytree(f"{lake}/datasets/kept", f"{lake}/datasets/{dataset}")
                shutil.rmtree(f"{lake}/datasets/{dataset}.rejected", ignore_errors=True)
                shutil.copytree(f"{lake}/datasets/kept.rejected", f"{lake}/datasets/{dataset}.rejected")
            start = time.perf_counter()
            answer = ingested(path, dataset, mode)
            passed = time.perf_counter() - start
            assert answer["rows"] == rows + more and answer["rejected"] == 0, answer
            assert mode == "replace" or answer["added"] == more, answer
            return passed

        common.say("one small run of each, and the dataset of before")
        small = write_table(arguments.data, os.path.join(lake, "small"), 0, 2000)
        ingested(small, "small")
        ingested(write_table(arguments.data, os.path.join(lake, "smaller"), 2000, 2500), "small", "append")
        ingested(before, "kept")
        sides = {
            "anew": lambda: seconds(whole, "anew", "replace"),
            "append": lambda: seconds(arrived, "grown", "append"),
            "append_of_whole": lambda: seconds(whole, "found", "append"),
        }
        figures = common.alternate(sides, arguments.repeats)
        start = time.perf_counter()
        answer = ingested(whole, "found", "append")
        nothing = round(time.perf_counter() - start, 2)
        assert answer["added"] == 0 and answer["known"] == rows + more, answer
        fingerprints = {ingested(arrived, dataset, "append")["fingerprint"] for dataset in ("anew", "grown", "found")}
        assert len(fingerprints) == 1, fingerprints
        spark.stop()
    common.finish(
        {
            "benchmark": "append",
            "ratio": common.ratio(figures["anew"], figures["append"]),
            "bound": 20,
            "ratio_of_whole": common.ratio(figures["anew"], figures["append_of_whole"]),
            "seconds": figures,
            "seconds_of_nothing_new": nothing,
            "rows": {"before": rows, "added": more},
            "repeats": arguments.repeats,
        }
    )


if __name__ == "__main__":
    main()
