"""When ``scheduler.step()`` is called, and whether the device has already made that step.

In eager training the user's calls govern. The launch of ``optimizer.step()`` may compute the next
values ahead, on the guess that as many optimizer steps lie before the next call as before the last
one; the call then only confirms them. A wrong guess is taken back before the next launch.
"""

from __future__ import annotations

from array import array

from fused_sched.tables import layout


class Cadence:
    """The calls of the fused schedulers of one optimizer, one call each in a *round*.

    Its numbers lie in one array, ``words``, which the compiled engine reads and writes too.
    """

    def __init__(self) -> None:
        self.words = array("q", [0] * layout.CADENCE_WORDS)
        self.words[layout.LEFT] = -1

    # -- launches --------------------------------------------------------------------------------

    def guess(self) -> int:
        """How the next launch advances the schedules: CALLED or STAY."""
        w = self.words
        expected = w[layout.SINCE] + 1 == w[layout.PERIOD]
        return layout.CALLED if expected and w[layout.CALLS] and w[layout.LEFT] else layout.STAY

    def launched(self, advance: int) -> None:
        """Count one optimizer step."""
        w = self.words
        w[layout.SINCE] += 1
        if advance == layout.CALLED:
            w[layout.AHEAD] = 1
            self.use_one()

    @property
    def ahead(self) -> bool:
        """Whether the device has made a round that the calls have yet to confirm."""
        return bool(self.words[layout.AHEAD])

    @property
    def answered(self) -> int:
        """Calls of that round that have come."""
        return self.words[layout.ANSWERED]

    def retract(self) -> None:
        """The device is put back to the last call."""
        self.words[layout.AHEAD] = self.words[layout.ANSWERED] = 0

    # -- calls -----------------------------------------------------------------------------------

    def confirm(self, number: int) -> bool:
        """A call of fused scheduler ``number``: whether the device has made its step already."""
        w = self.words
        if not w[layout.AHEAD] or w[layout.ANSWERED] != number:
            return False
        w[layout.ANSWERED] += 1
        if w[layout.ANSWERED] == w[layout.CALLS]:
            self.retract()
            w[layout.ROUNDS] += 1
            self.called()
        return True

    def called(self) -> None:
        """A round of calls has come: the next one is expected after as many optimizer steps."""
        w = self.words
        if w[layout.SINCE]:
            w[layout.PERIOD], w[layout.SINCE] = w[layout.SINCE], 0

    def made_alone(self) -> None:
        """The device has made a round by a launch of its own, for a call."""
        self.words[layout.ROUNDS] += 1
        self.use_one()

    def use_one(self) -> None:
        """One advance fewer until a schedule ends."""
        self.words[layout.LEFT] -= self.words[layout.LEFT] > 0

    # -- the host's account ----------------------------------------------------------------------

    @property
    def rounds(self) -> int:
        """Rounds that the device has made and the host's values lack."""
        return self.words[layout.ROUNDS]

    def take_rounds(self) -> int:
        rounds, self.words[layout.ROUNDS] = self.words[layout.ROUNDS], 0
        return rounds

    def arrange(self, calls: int, left: int | None) -> None:
        """What the next rounds are.

        Args:
            calls: of a round; 0 where no launch may compute ahead.
            left: advances until a schedule ends, None if none does.
        """
        self.words[layout.CALLS] = calls
        self.words[layout.LEFT] = -1 if left is None else left
