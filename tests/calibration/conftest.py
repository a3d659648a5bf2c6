from __future__ import annotations

import sys
from pathlib import Path

# The small bundles live with the runtime's tests.
sys.path.insert(0, str(Path(__file__).parent.parent / "runtime"))
