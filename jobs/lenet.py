"""Train BigDL's LeNet on a dataset with labels, and write its predictions."""

import sys

from gan_spark import job

if __name__ == "__main__":
    sys.exit(job.script("lenet"))
