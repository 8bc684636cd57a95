"""What attempts amount to: counts, rates, and how many questions were solved how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from nemo_axpo.distill.attempts import Attempt


@dataclass(frozen=True)
class AttemptSummary:
    """Rates in [0, 1]; None where a rate has no denominator."""

    num_questions: int
    num_rollouts: int
    accuracy: float | None
    tool_use: float | None
    tool_accuracy: float | None
    direct_accuracy: float | None
    solved: dict[int, int] = field(default_factory=dict)
    """Number of questions by how many of their rollouts were right."""
    sources: dict[str, int] = field(default_factory=dict)
    """Number of questions by data source."""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self) | {"solved": {str(count): number for count, number in self.solved.items()}}


def summarize_attempts(attempts: Sequence[Attempt]) -> AttemptSummary:
    """The summary of attempts with equally many rollouts each."""
    rows = [row for attempt in attempts for row in zip(attempt.rewards, attempt.uses_tool, strict=True)]
    most = max((len(attempt.rewards) for attempt in attempts), default=0)
    counts = Counter(attempt.num_correct for attempt in attempts)
    return AttemptSummary(
        num_questions=len(attempts),
        num_rollouts=len(rows),
        accuracy=_mean([reward for reward, _ in rows]),
        tool_use=_mean([float(uses_tool) for _, uses_tool in rows]),
        tool_accuracy=_mean([reward for reward, uses_tool in rows if uses_tool]),
        direct_accuracy=_mean([reward for reward, uses_tool in rows if not uses_tool]),
        solved={number: counts.get(number, 0) for number in range(most + 1)},
        sources=dict(sorted(Counter(attempt.source for attempt in attempts).items())),
    )


def histogram(solved: Mapping[int, int], *, width: int = 40) -> list[str]:
    """A line per number of right rollouts: ``2/4  ████  17``."""
    most, last = max(solved.values(), default=0), max(solved, default=0)
    return [
        f"{number}/{last}  {'█' * round(width * count / most) if most else '':<{width}}  {count}"
        for number, count in sorted(solved.items())
    ]


def percent(value: float | None) -> str:
    """``12.5%``; a dash without a denominator."""
    return "–" if value is None else f"{value:.1%}"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
