"""The embedded world's scripted teacher as an engine: it speaks through the same agent loop, tools and verifiers as a model.

It knows the scene behind a question from its id, calls the tool in a share of rollouts, aims right in a share of the calls,
and answers what the crop shows: so some of its answers are wrong, and the filter has something to do.
"""

from __future__ import annotations

from collections.abc import Iterable

from nemo_axpo.data.chat import ChatRenderer
from nemo_axpo.data.images import ImageStore
from nemo_axpo.types import Completion, GenerationRequest
from nemo_axpo.world.questions import QuestionStream, rng_for
from nemo_axpo.world.scene import COLOURS, SceneStyle
from nemo_axpo.world.trajectories import Trajectory, answer_text, teach


class ScriptedTeacher:
    """An :class:`nemo_axpo.engines.base.Engine` for questions of the embedded world, from its stream or from a file."""

    policy_version = 0

    def __init__(
        self,
        renderer: ChatRenderer,
        *,
        image_store: ImageStore,
        style: SceneStyle,
        tool_rate: float,
        aim_rate: float,
        direct_accuracy: float,
        seed: int,
    ) -> None:
        """``tool_rate``: share of rollouts that call the tool. ``aim_rate``: share of calls at the right tile; another
        one aims at random. ``direct_accuracy``: share of right answers without a call."""
        self._renderer, self._images, self._style, self._seed = renderer, image_store, style, seed
        self._tool_rate, self._aim_rate, self._direct_accuracy = tool_rate, aim_rate, direct_accuracy

    async def generate(self, request: GenerationRequest) -> Completion:
        """The turn that the request asks for (its id is ``<question>/<rollout>/t<turn>``). ValueError: another question."""
        rollout_id, _, turn = request.request_id.rpartition("/t")
        text = self._trajectory(rollout_id).turns[int(turn)]
        token_ids = self._renderer.encode(text)
        return Completion(token_ids, (0.0,) * len(token_ids), "stop", self.policy_version)

    def load_weights(self, named_tensors: Iterable[tuple[str, object]], *, policy_version: int) -> None:
        """It has none."""

    async def close(self) -> None:
        """Nothing to free."""

    def _trajectory(self, rollout_id: str) -> Trajectory:
        question_id = rollout_id.rpartition("/")[0]
        name, seed, index = _stream_of(question_id)
        stream = QuestionStream(name, seed=seed, style=self._style, image_store=self._images)
        world_question = stream.world_question(index)
        rng = rng_for("scripted teacher", self._seed, rollout_id)
        use_tool = bool(rng.random() < self._tool_rate)
        is_right = use_tool or bool(rng.random() < self._direct_accuracy)
        taught = teach(world_question, use_tool=use_tool, aim_rate=self._aim_rate, rng=rng)
        if is_right:
            return taught
        right = world_question.question.answer
        wrong = str(rng.choice([colour for colour in COLOURS if colour != right]))
        return Trajectory((taught.turns[0].replace(answer_text(right), answer_text(wrong)),), None)


def _stream_of(question_id: str) -> tuple[str, int, int]:
    """Stream name, seed and index of a question of the world."""
    name, _, rest = question_id.partition("~")[0].rpartition("-")
    stream, _, seed = name.rpartition("-")
    if not (stream and seed.isdigit() and rest.isdigit()):
        raise ValueError(
            f"the scripted teacher knows questions of the embedded world alone; got {question_id!r}: choose another "
            "distill.teacher, or questions of `nemo-axpo world-questions`"
        )
    return stream, int(seed), int(rest)
