"""How many trials a worker trains side by side, when errors say that they are too many."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Crowd:
    """Limits the loaded lanes after an error that struck several of them, of whom none is known to be guilty."""

    max_lanes: int
    _num_suspects: int = field(default=0, init=False)

    @property
    def limit(self) -> int:
        """Lanes that may be loaded now."""
        return 1 if self._num_suspects else self.max_lanes

    def thin_out(self, num_loaded: int, *, is_memory_short: bool) -> None:
        """Take down an error among so many lanes, all of which went back to the queue."""
        if is_memory_short:
            self.max_lanes = max(1, num_loaded // 2)
        else:
            # They are first in the queue, and train one by one: the guilty one fails alone.
            self._num_suspects = num_loaded

    def isolate(self) -> None:
        """Give the trial that comes next no company."""
        self._num_suspects = max(1, self._num_suspects)

    def note_end(self) -> None:
        """Take down that a lane's trial ended, or went back."""
        self._num_suspects = max(0, self._num_suspects - 1)
