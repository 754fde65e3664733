"""Read generated pictures of shapes, and compare what they show with their captions."""

import sys

from gan_spark import job
from gan_spark.quality.attributes import attributes

if __name__ == "__main__":
    sys.exit(job.main(attributes, __doc__))
