"""What a finished step leaves on disk besides its metrics, whichever loop took it: trees for the report, a journal entry."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_axpo.assembly import Workbench
from nemo_axpo.journal import Journal
from nemo_axpo.loop import Experience
from nemo_axpo.report.recorder import record_trees
from nemo_axpo.report.tree_records import choose_groups, tree_record
from nemo_axpo.run_directory import RunDirectory
from nemo_axpo.types import TrainingSample

MAX_RECORDED_GROUPS = 4
"""Trees written at a recorded step: enough to browse, small on disk."""


def record_step(
    run: RunDirectory,
    experience: Experience,
    samples: Sequence[TrainingSample],
    *,
    number: int,
    bench: Workbench,
) -> None:
    """Writes the trees of a few groups of step ``number``; the images of the step must still be stored."""
    groups = choose_groups(experience.groups, continuations=experience.continuations, max_groups=MAX_RECORDED_GROUPS)
    trees = [
        tree_record(
            group,
            step=number,
            plan=experience.plan,
            continuations=experience.continuations,
            samples=samples,
            decode=bench.renderer.decode,
        )
        for group in groups
    ]
    record_trees(run, trees, step=number, image_store=bench.images, image_processor=bench.image_processor)


def journal_step(journal: Journal, experience: Experience, *, number: int, num_questions: int) -> None:
    """Notes the questions that step ``number`` has consumed."""
    rollouts = [(score.question_id, score.rollout_id) for score in experience.scores]
    journal.trained(number, first=(number - 1) * num_questions, count=num_questions, rollouts=rollouts)
