"""``python -m hpcopt`` is ``hpcopt``."""

import sys

from hpcopt.cli.main import main

sys.exit(main())
