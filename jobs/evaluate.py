"""Measure a table of generated images against a dataset."""

import sys

from gan_spark import job

if __name__ == "__main__":
    sys.exit(job.script("evaluate"))
