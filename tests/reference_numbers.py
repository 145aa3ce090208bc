"""Where the parity tests find their reference numbers.

REFERENCE_FIXTURES names another folder with files of the same names, so that fresh draws can be
tried.
"""

import os
from pathlib import Path

FIXTURES = Path(os.environ.get("REFERENCE_FIXTURES") or Path(__file__).parent / "fixtures")
