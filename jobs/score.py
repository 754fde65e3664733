"""Images that arrive -> a table of what a registered model answers to them, micro-batch by micro-batch."""

import sys

from gan_spark import job

if __name__ == "__main__":
    sys.exit(job.script("score"))
