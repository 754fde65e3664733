"""One self-contained HTML page about a run."""

import sys

from gan_spark import job
from gan_spark.quality.report import report

if __name__ == "__main__":
    sys.exit(job.main(report, __doc__))
