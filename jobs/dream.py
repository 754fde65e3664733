"""Drive up layers of a network in images of a dataset: DeepDream."""

import sys

from gan_spark import job
from gan_spark.sampling.dream import dream

if __name__ == "__main__":
    sys.exit(job.main(dream, __doc__))
