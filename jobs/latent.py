"""Draw paths between seeds, and sums and differences of classes, in a generator's latent space."""

import sys

from gan_spark import job
from gan_spark.sampling.latent import latent

if __name__ == "__main__":
    sys.exit(job.main(latent, __doc__))
