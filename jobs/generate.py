"""Write a table of generated images to the lake."""

import sys

from gan_spark import job

if __name__ == "__main__":
    sys.exit(job.script("generate"))
