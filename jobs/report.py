"""One self-contained HTML page about a run."""

import sys

from gan_spark import job

if __name__ == "__main__":
    sys.exit(job.script("report"))
