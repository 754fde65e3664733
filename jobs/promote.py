"""Register a run as a version of a named model, and promote it if it is better."""

import sys

from gan_spark import job
from gan_spark.quality.promote import promote_run

if __name__ == "__main__":
    sys.exit(job.main(promote_run, __doc__))
