"""Train a model on a dataset, on any number of Horovod ranks."""

import sys

from gan_spark import job
from gan_spark.training.driver import train

if __name__ == "__main__":
    sys.exit(job.main(train, __doc__))
