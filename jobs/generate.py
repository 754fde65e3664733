"""Write a table of generated images to the lake."""

import sys

from gan_spark import job
from gan_spark.sampling.generate import generate

if __name__ == "__main__":
    sys.exit(job.main(generate, __doc__))
