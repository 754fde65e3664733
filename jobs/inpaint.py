"""Fill holes in images of a dataset with a trained DCGAN."""

import sys

from gan_spark import job

if __name__ == "__main__":
    sys.exit(job.script("inpaint"))
