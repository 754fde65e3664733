"""Append: 1% more images added to a dataset, against ingesting all of it anew.

A table of PNG images, 300,000 unless --rows says otherwise, is ingested; then 1% more images are in it. They come into
the dataset by `ingest.mode = "append"` and by the same ingest anew, in turn, in one Spark session, after a small run of
each that is not counted. What is compared is what each does beyond its start: its seconds less those of the same job
over 100 images (to 100 others), which are the dozen jobs of Spark that it begins whatever there is to do. The seconds
themselves are beside it. The append is measured twice: of the table of the new rows alone, as they arrive, which is the
ratio, and of the whole table, in which it has to find them.

The images are Fashion-MNIST's 60,000, each shifted by another pixel as often as it takes.

    python benchmarks/append.py
"""

import os
import shutil
import time

import common

CHUNK, FEW = 10_000, 100


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

        tables = [
            write_table(arguments.data, os.path.join(lake, f"few-{start}"), start, start + FEW)
            for start in range(0, (arguments.repeats + 2) * FEW, FEW)
        ]
        small = iter(tables)

        def start_of(mode: str) -> float:
            """Seconds of the same job where there is next to nothing to do."""
            path = tables[0] if mode == "replace" else next(small)
            start = time.perf_counter()
            answer = ingested(path, "few" if mode == "append" else "few-anew", mode)
            assert mode == "replace" or answer["added"] == FEW, answer
            return time.perf_counter() - start

        common.say("one small run of each, and the dataset of before")
        start_of("replace")
        for _ in range(2):  # The first makes the dataset.
            path = next(small)
            ingested(path, "few", "append")
        ingested(before, "kept")
        sides = {
            "anew": lambda: seconds(whole, "anew", "replace"),
            "append": lambda: seconds(arrived, "grown", "append"),
            "append_of_whole": lambda: seconds(whole, "found", "append"),
            "anew_start": lambda: start_of("replace"),
            "append_start": lambda: start_of("append"),
        }
        figures = common.alternate(sides, arguments.repeats)
        beyond = {
            name: [max(round(a - b, 2), 0.01) for a, b in zip(figures[name], figures[start], strict=True)]
            for name, start in (("anew", "anew_start"), ("append", "append_start"), ("append_of_whole", "append_start"))
        }
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
            "ratio": common.ratio(beyond["anew"], beyond["append"]),
            "bound": 20,
            "ratio_of_whole": common.ratio(beyond["anew"], beyond["append_of_whole"]),
            "ratio_with_start": common.ratio(figures["anew"], figures["append"]),
            "seconds_beyond_start": beyond,
            "seconds": figures,
            "seconds_of_nothing_new": nothing,
            "rows": {"before": rows, "added": more},
            "repeats": arguments.repeats,
        }
    )


if __name__ == "__main__":
    main()
