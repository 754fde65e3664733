"""Read generated pictures of shapes, and compare what they show with their captions."""

import sys

from gan_spark import job

if __name__ == "__main__":
    sys.exit(job.script("attributes"))
