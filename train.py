"""Run PACL from a checkout: `accelerate launch train.py [RECIPE] [--field value …]`."""

import sys

try:
    from pacl.training.__main__ import main
except ModuleNotFoundError as error:
    if error.name != "pacl":
        raise
    sys.exit("the package pacl is not installed; in this folder, run: pip install -e .")

if __name__ == "__main__":
    main(sys.argv[1:])
