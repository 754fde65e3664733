"""Images that arrive -> more of a Petastorm dataset, micro-batch by micro-batch; a model may learn from them."""

import sys

from gan_spark import job

if __name__ == "__main__":
    sys.exit(job.script("stream"))
