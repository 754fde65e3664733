"""Fine-tune a network on a dataset with labels, on any number of Horovod ranks, and measure it."""

import sys

from gan_spark import job

if __name__ == "__main__":
    sys.exit(job.script("finetune"))
