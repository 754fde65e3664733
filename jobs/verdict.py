"""Records of a service -> the verdict on a challenger, and a page of it."""

import sys

from gan_spark import job

if __name__ == "__main__":
    sys.exit(job.script("verdict"))
