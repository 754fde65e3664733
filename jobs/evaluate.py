"""Measure a table of generated images against a dataset."""

import sys

from gan_spark import job
from gan_spark.quality.evaluate import evaluate

if __name__ == "__main__":
    sys.exit(job.main(evaluate, __doc__))
