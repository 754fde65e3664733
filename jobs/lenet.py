"""Train BigDL's LeNet on a dataset with labels, and write its predictions."""

import sys

from gan_spark import job
from gan_spark.ml import lenet

if __name__ == "__main__":
    sys.exit(job.main(lenet.lenet, __doc__, jars=lenet.jars))
