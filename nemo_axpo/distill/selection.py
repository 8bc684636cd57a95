"""Which right trajectories are imitated: at most M of a question, and the wanted share with a tool call.

A question that was answered right in both ways gives what is needed. Where there is still too little of one kind, the
other is thinned, so the share comes out at any size. The choice hangs on ids and seed alone. Example, share 1/4, M = 1::

    q1 tool direct   q2 direct   q3 direct   q4 direct   q5 direct   →   q1 tool, three of q2 … q5
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nemo_axpo.rollouts.seeds import derive_seed


@dataclass(frozen=True)
class Candidate:
    """All that selection knows of a right trajectory."""

    trajectory_id: str
    question_id: str
    uses_tool: bool


def select(
    candidates: Sequence[Candidate], *, max_per_question: int, tool_share: float | None, seed: int = 0
) -> set[str]:
    """Ids of the trajectories to imitate.

    ``tool_share``: in [0, 1], the largest share that is not above it and uses the scarcer kind in full; None keeps the
    share as it comes.
    """
    ranked = sorted(candidates, key=lambda c: derive_seed("trajectory", seed, c.trajectory_id))
    questions: dict[str, list[Candidate]] = {}
    for candidate in ranked:
        questions.setdefault(candidate.question_id, []).append(candidate)
    if tool_share is None:
        return {c.trajectory_id for question in questions.values() for c in question[:max_per_question]}
    counts = [_Kinds.of(question, max_per_question=max_per_question) for question in questions.values()]
    wanted = _num_tool(counts, tool_share=tool_share)
    kept = [c for question, kinds, num in zip(questions.values(), counts, wanted) for c in kinds.take(question, num)]
    order = {candidate.trajectory_id: place for place, candidate in enumerate(ranked)}
    tool, direct = (sorted((c for c in kept if c.uses_tool is kind), key=lambda c: order[c.trajectory_id])
                    for kind in (True, False))  # fmt: skip
    num_tool, num_direct = thinned(len(tool), len(direct), tool_share=tool_share)
    return {c.trajectory_id for c in (*tool[:num_tool], *direct[:num_direct])}


def thinned(num_tool: int, num_direct: int, *, tool_share: float) -> tuple[int, int]:
    """How many of each kind stay, so that tool ÷ all is ``tool_share`` as nearly as whole numbers allow, one kind whole.

    ``thinned(30, 30, tool_share=0.25)`` is (10, 30); ``thinned(5, 30, tool_share=0.25)`` is (5, 15).
    """
    if tool_share in (0.0, 1.0):
        return (0, num_direct) if tool_share == 0.0 else (num_tool, 0)
    wanted_tool = num_direct * tool_share / (1 - tool_share)
    if num_tool >= wanted_tool:
        return math.floor(wanted_tool + 1e-9), num_direct
    return num_tool, min(num_direct, math.ceil(num_tool * (1 - tool_share) / tool_share - 1e-9))


@dataclass(frozen=True)
class _Kinds:
    """How many trajectories a question gives, and between which bounds those with a tool call can be."""

    total: int
    min_tool: int
    max_tool: int

    @classmethod
    def of(cls, candidates: Sequence[Candidate], *, max_per_question: int) -> _Kinds:
        total, num_tool = min(max_per_question, len(candidates)), sum(c.uses_tool for c in candidates)
        return cls(total, max(0, total - (len(candidates) - num_tool)), min(num_tool, total))

    def take(self, candidates: Sequence[Candidate], num_tool: int) -> list[Candidate]:
        tool, direct = [c for c in candidates if c.uses_tool], [c for c in candidates if not c.uses_tool]
        return tool[:num_tool] + direct[: self.total - num_tool]


def _num_tool(questions: Sequence[_Kinds], *, tool_share: float) -> list[int]:
    """Trajectories with a tool call per question, so that their share of all comes as near to the wanted one as it can."""
    counts = [question.min_tool for question in questions]
    missing = math.floor(tool_share * sum(question.total for question in questions) + 1e-9) - sum(counts)
    for number, question in enumerate(questions):
        more = min(max(missing, 0), question.max_tool - question.min_tool)
        counts[number] += more
        missing -= more
    return counts
