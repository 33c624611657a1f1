"""`make kd-gain`: see `benchmarks.kd_gain.study`."""

import sys
from pathlib import Path

from benchmarks.kd_gain import study

if __name__ == "__main__":
    try:
        study.run(Path(__file__).parent)
    except study.StudyError as error:
        sys.exit(str(error))
