"""Compare a registered model's challenger with the promoted version, and draw the page of it."""

import sys

from gan_spark import job

if __name__ == "__main__":
    sys.exit(job.script("verdict"))
