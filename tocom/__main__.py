"""``python -m tocom``: the command line where the folder of installed scripts is not on the search path."""

from __future__ import annotations

from tocom.cli import main

if __name__ == "__main__":
    main()
