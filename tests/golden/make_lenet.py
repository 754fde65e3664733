"""Makes lenet.json, which the tests of both languages read: a small LeNet trained by BigDL on real digits, images, and
what it gives for them.

uv run tests/golden/make_lenet.py RUN DATASET    (URLs of a run of jobs/lenet.py, and of the dataset that it was trained
on)
"""

import base64
import json
import sys
from pathlib import Path

import numpy as np

from gan_spark import job, lake
from gan_spark.data import schema, splits
from gan_spark.ml import bigdl, columns
from gan_spark.runs.store import Run

if __name__ == "__main__":
    run, url = Run(lake.to_url(sys.argv[1])), lake.to_url(sys.argv[2])
    spark = job.session("golden", bigdl.jars())
    bigdl.start(spark)
    shape = schema.read_manifest(url).shape
    rows = spark.read.parquet(*splits.files(url, "test")).orderBy("id").limit(12).collect()
    with run.checkpoint() as (_, prefix):
        files = {kind: base64.b64encode(Path(f"{prefix}.{kind}").read_bytes()).decode() for kind in ("bigdl", "bin")}
        model = bigdl.load(prefix)
    pixels = np.stack([columns.pixels(row["image"]) for row in rows])
    scores = model.forward(pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - np.float32(1))
    golden = {
        **files,
        "shape": list(shape),
        "rows": [
            {
                "id": row["id"],
                "image": base64.b64encode(row["image"]).decode(),
                "prediction": int(np.argmax(score)),
                "log_probabilities": [float(value) for value in score],
            }
            for row, score in zip(rows, scores, strict=True)
        ],
    }
    Path(__file__).with_name("lenet.json").write_text(json.dumps(golden) + "\n")
