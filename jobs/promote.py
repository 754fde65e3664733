"""Register a run as a version of a named model, and promote it if it is better."""

import sys

from gan_spark import job

if __name__ == "__main__":
    sys.exit(job.script("promote"))
