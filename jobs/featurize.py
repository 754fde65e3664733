"""Fit a pipeline of a network's features and logistic regression on a dataset with labels, and measure it."""

import sys

from gan_spark import job

if __name__ == "__main__":
    sys.exit(job.script("featurize"))
