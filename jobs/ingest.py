"""Images in the lake -> a Petastorm dataset, with a table of what was rejected."""

import sys

from gan_spark import job
from gan_spark.data.ingest import ingest

if __name__ == "__main__":
    sys.exit(job.main(ingest, __doc__))
