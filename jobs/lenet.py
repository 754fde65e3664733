"""Train BigDL's LeNet on a dataset with labels, and write its predictions."""

import sys

from gan_spark import job
from gan_spark.ml import bigdl

if __name__ == "__main__":
    sys.exit(job.main(bigdl.lenet, __doc__, jars=bigdl.jars))
