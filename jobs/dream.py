"""Drive up layers of a network in images of a dataset: DeepDream."""

import sys

from gan_spark import job

if __name__ == "__main__":
    sys.exit(job.script("dream"))
