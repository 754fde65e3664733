"""Classes of an image, or of a folder of them, by a run's classifier."""

import sys

from gan_spark import job

if __name__ == "__main__":
    sys.exit(job.script("predict"))
