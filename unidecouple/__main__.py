"""`python -m unidecouple`: the same as the console script, so that `torchrun -m unidecouple` works too."""

from __future__ import annotations

from unidecouple.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
