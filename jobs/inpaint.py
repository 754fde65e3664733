"""Fill holes in images of a dataset with a trained DCGAN."""

import sys

from gan_spark import job
from gan_spark.sampling.inpaint import inpaint

if __name__ == "__main__":
    sys.exit(job.main(inpaint, __doc__))
