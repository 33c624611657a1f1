"""`make trials`: see `benchmarks.trials.study`. Trains with the pinned instruction set of the stages."""

from stages.pipeline import pinning

if __name__ == "__main__":
    pinning.pin()

import argparse
import sys
from pathlib import Path

from benchmarks.trials import study
from stages.core import arguments
from stages.learning import checkpoints

STUDIES = Path(__file__).parent

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=sorted(path.stem for path in STUDIES.glob("*.yaml")))
    parser.add_argument("--into", type=Path, required=True, help="folder of choices")
    parser.add_argument(
        "--lanes", type=arguments.at_least_one, help="trainings at a time; by default the cores over `threads`"
    )
    args = parser.parse_args()
    try:
        study.run(STUDIES / f"{args.study}.yaml", args.into, args.lanes)
    except (ValueError, checkpoints.BusyError, FileNotFoundError) as error:
        sys.exit(str(error))
