"""Stop strings, by hand and over every way of cutting a text into pieces."""

from __future__ import annotations

from itertools import combinations

import pytest

from unidecouple.generate.stopping import before_stop, has_stop, settled


@pytest.mark.parametrize(
    ("text", "stops", "before", "shown"),
    [
        ("a red cow", (), "a red cow", "a red cow"),
        ("a red cow", ("red",), "a ", "a "),
        ("a red cow", ("cow", "red"), "a ", "a "),
        ("a red cow", ("cows",), "a red cow", "a red "),
        ("a red cow", ("w, it is", "ow"), "a red c", "a red c"),
        ("aab", ("abc", "b!"), "aab", "a"),
        ("red", ("red",), "", ""),
        ("", ("red",), "", ""),
    ],
)
def test_by_hand(text: str, stops: tuple[str, ...], before: str, shown: str) -> None:
    assert (before_stop(text, stops), settled(text, stops)) == (before, shown)
    assert has_stop(text, stops) is (before != text)


def test_what_was_shown_is_never_taken_back() -> None:
    """In whatever pieces a text comes: each state shows what the last one did and maybe more, up to the first stop string."""
    text, stops = "aabaabcab", ("abc", "aabb")
    for count in range(len(text)):
        for places in combinations(range(1, len(text)), count):
            shown = ""
            for end in (*places, len(text)):
                new = settled(text[:end], stops)
                assert new.startswith(shown)
                shown = new
                if has_stop(text[:end], stops):
                    break
            assert shown == "aaba"


def test_a_part_of_a_character_is_no_stop_string_yet() -> None:
    assert not has_stop("a \ufffd", ("\ufffd",))
    assert has_stop("a \ufffd b", ("\ufffd",))
