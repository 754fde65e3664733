"""Images in the lake -> a Petastorm dataset, with a table of what was rejected."""

import sys

from gan_spark import job

if __name__ == "__main__":
    sys.exit(job.script("ingest"))
