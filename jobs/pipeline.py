"""Ingest, train, generate and evaluate."""

import sys

from gan_spark import job
from gan_spark.pipeline import pipeline

if __name__ == "__main__":
    sys.exit(job.main(pipeline, __doc__))
