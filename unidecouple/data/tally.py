"""Bad records are counted, logged once each, and too many of them stop the work."""

from __future__ import annotations

import logging
from typing import Final

from unidecouple.data.formats import BadRecordError

_SOON: Final = 1000
"""Records from which on the share is taken of what was seen; before that, of what could still come."""

_log = logging.getLogger(__name__)


class BadDataError(ValueError):
    """More records are bad than ``max_bad_ratio`` allows."""


class Tally:
    """Records seen, and the bad ones among ``total`` to be seen; one that is met again counts again."""

    def __init__(self, max_bad_ratio: float, total: int) -> None:
        self._allowed, self._total = max_bad_ratio, total
        self._told: set[str] = set()
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
        if error.where not in self._told:
            self._told.add(error.where)
            _log.warning("skipped: %s", error)
        if self.bad > self._allowed * max(self.seen, min(self._total, _SOON)):
            raise BadDataError(
                f"{self.bad} of {self.seen} records seen are bad, more than max_bad_ratio={self._allowed}; the last: {error}. "
                "`unidecouple data check` lists them all"
            )
