"""`python -m glm4v_ops`."""

import sys

from glm4v_ops.cli import main

sys.exit(main())
