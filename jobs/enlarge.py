"""Enlarge images of any size by a run's SRResNet or SRGAN, and measure it against originals."""

import sys

from gan_spark import job

if __name__ == "__main__":
    sys.exit(job.script("enlarge"))
