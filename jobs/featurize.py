"""Fit a pipeline of a network's features and logistic regression on a dataset with labels, and measure it."""

import sys

from gan_spark import job
from gan_spark.ml.featurize import featurize

if __name__ == "__main__":
    sys.exit(job.main(featurize, __doc__))
