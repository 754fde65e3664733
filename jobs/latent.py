"""Draw paths between seeds, and sums and differences of classes, in a generator's latent space."""

import sys

from gan_spark import job

if __name__ == "__main__":
    sys.exit(job.script("latent"))
