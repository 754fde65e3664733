"""Classes of an image, or of a folder of them, by a run's classifier."""

import sys

from gan_spark import job
from gan_spark.ml.predict import predict

if __name__ == "__main__":
    sys.exit(job.main(predict, __doc__))
