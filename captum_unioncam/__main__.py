"""The command as a module: ``python -m captum_unioncam``, ``torchrun ... -m captum_unioncam evaluate ...``."""

import sys

from captum_unioncam.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
