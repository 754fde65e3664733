"""Look a cluster over before it is paid for: Python, Java, slots, GPUs, Horovod, the lake, ports, memory."""

import sys

from gan_spark import job

if __name__ == "__main__":
    sys.exit(job.script("doctor"))
