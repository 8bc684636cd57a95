"""Why an engine and the trainer disagree after an update: the probes again, and behind beginnings and pictures never seen.

    kind of probe             what the engine may have kept from before the update
    text, image               prefix, picture, weights
    new text                  weights
    new prompt, old picture   picture, weights
    new picture               weights

What agrees and what does not names the cause. Every rank takes part; nothing here runs unless a proof failed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from nemo_axpo.assembly import Workbench
from nemo_axpo.canaries.checks import Check, describe, mean_difference
from nemo_axpo.canaries.probes import IMAGE, TEXT, random_picture, row_ids, sample_everywhere
from nemo_axpo.canaries.scoring import trainer_logprobs
from nemo_axpo.data.images import ImageStore
from nemo_axpo.distributed.replicas import Replicas
from nemo_axpo.engines.base import Engine
from nemo_axpo.errors import CanaryError
from nemo_axpo.types import RenderedTokens, SamplingParams, TrainingSample

NEW_TEXT, OLD_PICTURE, NEW_PICTURE = "new text", "new prompt, old picture", "new picture"
KINDS = (TEXT, IMAGE, NEW_TEXT, OLD_PICTURE, NEW_PICTURE)

STALE_WEIGHTS = "stale weights: the engine answers as it did before the update. Its update path changes nothing"
OTHER_WEIGHTS = (
    "other weights: prompts that it never saw differ too. A tensor was not replaced (a tied or repacked output layer?), was "
    "loaded half or rounded, or engine and trainer differ in temperature or banned ids"
)
STALE_PREFIXES = "stale prefix cache: prompts that it never saw agree. Reset the prefix cache after every update"
STALE_PICTURES = "stale image cache: pictures that it never saw agree. Reset the encoder's cache of image features after every update"
OTHER_VISION = "other vision weights, or another picture: text agrees, pictures do not, whether seen before or not"
OTHER_VERSION = "another version: the completions do not carry the version that was pushed. Was a server restarted?"
NOT_AGAIN = "an answer that does not come again: asked once more, the engine agrees. Its log-probs are not reproducible"


@dataclass(frozen=True)
class ProbePrompts:
    """What a proof asks."""

    text: RenderedTokens
    image: RenderedTokens
    pictures: tuple[Image.Image, ...]
    """Of ``image``, in order."""

    def restore(self, images: ImageStore) -> dict[str, RenderedTokens]:
        """The prompts by kind, their pictures in the store."""
        for picture in self.pictures:
            images.add(picture)
        return {TEXT: self.text, IMAGE: self.image}

    def unseen(self, images: ImageStore, *, beginning: tuple[int, ...], seed: int) -> dict[str, RenderedTokens]:
        """The same prompts behind other tokens, with the old pictures and with noise of their size."""
        start = RenderedTokens(beginning)
        new_ids = tuple(
            images.add(random_picture(seed + number, size=picture.size)) for number, picture in enumerate(self.pictures)
        )
        return {
            NEW_TEXT: start + self.text,
            OLD_PICTURE: start + self.image,
            NEW_PICTURE: start + RenderedTokens(self.image.token_ids, new_ids),
        }


@dataclass(frozen=True)
class Cause:
    """What one replica found; replicas exchange it."""

    replica: int
    server: str
    text: str


async def diagnose(
    checks: Sequence[Check],
    *,
    prompts: ProbePrompts | None,
    sampling: SamplingParams,
    tolerance: float,
    bench: Workbench,
    actor: Any,
    engine: Engine | None,
    replicas: Replicas,
    num_servers: Callable[[int], int],
) -> None:
    """Raises CanaryError with the failed ``checks`` and the cause on each engine. ``prompts``: None without one.

    ``num_servers``: of a replica.
    """
    sampled: dict[str, dict[str, TrainingSample]] = {}
    if engine is not None:
        # No update has this beginning twice, so that no cache can hold it.
        beginning = bench.renderer.encode(f"{actor.policy_version}: ")
        asked = prompts.restore(bench.images)
        asked |= prompts.unseen(bench.images, beginning=beginning, seed=actor.policy_version)
        sampled = await sample_everywhere(engine, asked, sampling=sampling, name=_name(replicas.index))
    logprobs = trainer_logprobs(
        tuple(row for rows in sampled.values() for row in rows.values()),
        ids_of=lambda replica: row_ids(_name(replica), KINDS, num_servers=num_servers(replica)),
        actor=actor,
        replicas=replicas,
        image_store=bench.images,
    )
    causes = []
    failed = [check for check in checks if not check.passed]
    for server, rows in sampled.items():
        kinds = {c.kind for c in failed if c.replica == replicas.index and (not server or c.name.endswith(f" on {server}"))}
        differences = {kind: mean_difference(row, logprobs[row.rollout_id]) for kind, row in rows.items()}
        bad = {kind for kind, difference in differences.items() if difference > tolerance}
        if kinds:
            causes.append(Cause(replicas.index, server, name_cause(bad, failed=kinds)))
    found = replicas.gather(causes, kind=Cause)
    raise CanaryError(_message(failed, found, policy_version=actor.policy_version))


def name_cause(bad: set[str], *, failed: set[str]) -> str:
    """The likeliest cause. ``bad``: kinds of probes that disagree; ``failed``: kinds of checks that failed before."""
    if "moved" in failed:
        return STALE_WEIGHTS
    if NEW_TEXT in bad:
        return OTHER_WEIGHTS
    if TEXT in bad:
        return STALE_PREFIXES
    if NEW_PICTURE in bad:
        return OTHER_VISION
    if OLD_PICTURE in bad:
        return STALE_PICTURES
    if IMAGE in bad:
        return STALE_PREFIXES
    return OTHER_VERSION if "version" in failed else NOT_AGAIN


def _message(failed: Sequence[Check], causes: Sequence[Cause], *, policy_version: int) -> str:
    lines = [f"after update {policy_version} an engine must sample the trainer's policy; it does not:"]
    lines += [f"{cause.server or f'replica {cause.replica}'}: {cause.text}" for cause in causes]
    return "\n  ".join(lines + [describe(check) for check in failed])


def _name(replica: int) -> str:
    return f"diagnosis/{replica}"
