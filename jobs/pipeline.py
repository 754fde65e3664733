"""Ingest, train, generate and evaluate."""

import sys

from gan_spark import job

if __name__ == "__main__":
    sys.exit(job.script("pipeline"))
