"""The record of a trial."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

TrialState = Literal["running", "finished", "stopped", "failed"]
# Measured for every trial; a metric of the search may be one of them.
SECONDS, CPU_SECONDS = "seconds", "cpu_seconds"


@dataclass
class Trial:
    """One evaluation of the objective.

    Attributes:
        number: Position in the order of proposal, from 0.
        params: Values of the space's parameters.
        state: `finished` ran to its end, `stopped` was ended early, `failed` has a reason.
        reason: Cause of a failure or of an early end.
        certain: Whether the failure ended the search, since every trial would meet it.
        traceback: Traceback of the objective's failure, in its process.
        parent: Number of the trial from whose checkpoint this one started.
        start_round: Rounds run by its parents.
        rounds: Metrics reported in each of its own rounds, with `seconds` (wall clock) and
            `cpu_seconds` since its start: CPU time of its process, and seconds times the CPUs that
            are reserved for nested workers.
        started: Start, in seconds of the search.
        ended: End, in seconds of the search.
    """

    number: int
    params: dict[str, Any]
    state: TrialState = "running"
    reason: str | None = None
    certain: bool = False
    traceback: str = ""
    parent: int | None = None
    start_round: int = 0
    rounds: list[dict[str, float]] = field(default_factory=list)
    started: float = 0.0
    ended: float | None = None

    @property
    def last_round(self) -> int:
        """Number of the last round, from 1, its parents' counted; 0 before the first."""
        return self.start_round + len(self.rounds)

    @property
    def seconds(self) -> float:
        """Wall clock of its rounds."""
        return self.rounds[-1][SECONDS] if self.rounds else 0.0

    @property
    def cpu_seconds(self) -> float:
        """CPU time of its process, and CPUs of nested workers times seconds, in its rounds."""
        return self.rounds[-1][CPU_SECONDS] if self.rounds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
