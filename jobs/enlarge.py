"""Images of any size, enlarged by a run's SRResNet or SRGAN."""

import sys

from gan_spark import job

if __name__ == "__main__":
    sys.exit(job.script("enlarge"))
