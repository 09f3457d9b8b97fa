"""Count bad records, log the first few, and stop when they are too many."""

from __future__ import annotations

import logging
from typing import Final

from unidecouple.data.formats import BadRecordError

_SOON: Final = 1000
"""From this many records on, the ratio is of those read; before, of those that are still to come, too."""

LOGGED: Final = 5
"""Different bad records that are logged; then their number is, each time it has grown tenfold."""

_log = logging.getLogger(__name__)


_COUNTED: Final = frozenset(10**power for power in range(1, 13))


class BadDataError(ValueError):
    """More records are bad than ``max_bad_ratio`` allows."""


class BadRecordCounter:
    """Counts records read, and the bad ones among them; a record read again counts again. ``total`` is how many there are."""

    def __init__(self, max_bad_ratio: float, total: int) -> None:
        self._allowed, self._total = max_bad_ratio, total
        self._logged: set[str] = set()
        self.seen, self.bad = 0, 0

    def good(self) -> None:
        """Count a record that could be used."""
        self.seen += 1

    def skip(self, error: BadRecordError) -> None:
        """Count and log a record that cannot be used.

        Raises:
            BadDataError: that is one too many.
        """
        self.seen, self.bad = self.seen + 1, self.bad + 1
        if len(self._logged) < LOGGED and error.where not in self._logged:
            self._logged.add(error.where)
            _log.warning("skipped: %s", error)
        elif len(self._logged) == LOGGED and self.bad in _COUNTED:
            _log.warning("skipped: %s of %s records so far; `unidecouple data check` says what is wrong", self.bad, self.seen)
        if self.bad > self._allowed * max(self.seen, min(self._total, _SOON)):
            raise BadDataError(
                f"{self.bad} of {self.seen} records seen are bad, more than max_bad_ratio={self._allowed}; the last: {error}. "
                "`unidecouple data check` says what is wrong"
            )
