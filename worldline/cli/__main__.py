"""`python -m worldline.cli`, where the command is not on the path."""

import sys

from worldline.cli import main

sys.exit(main())
