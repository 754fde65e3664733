"""Train a model on a dataset, on any number of Horovod ranks."""

import sys

from gan_spark import job

if __name__ == "__main__":
    sys.exit(job.script("train"))
