"""`python -m meanshifter`."""

import sys

from meanshifter.cli.main import main

sys.exit(main())
