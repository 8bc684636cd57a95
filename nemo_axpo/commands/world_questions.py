"""``nemo-axpo world-questions``."""

from __future__ import annotations

import argparse
from pathlib import Path

from nemo_axpo.commands.options import add_config_options, composed_config


def add(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``world-questions`` and its options."""
    parser = subparsers.add_parser(
        "world-questions",
        help="write questions of the embedded world as a data file",
        description="Writes questions.jsonl with its images, in the question schema, for data=files.",
        epilog="example: nemo-axpo world-questions --output outputs/questions --number 2000",
    )
    add_config_options(parser)
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="directory to write")
    parser.add_argument("--number", type=int, metavar="N", default=1000, help="of questions (default: %(default)s)")
    parser.add_argument(
        "--stream", metavar="NAME", default="file", help="other names give others (default: %(default)s)"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    config = composed_config(options, settings={})
    from nemo_axpo.data.images import ImageStore
    from nemo_axpo.models.qwen3_vl.tiny import tiny_image_processor
    from nemo_axpo.world.question_file import write_questions
    from nemo_axpo.world.questions import QuestionStream
    from nemo_axpo.world.scene import SceneStyle

    world = config.world
    style = SceneStyle(dots=world.dots, tint=world.tint, daylight=world.daylight)
    images = ImageStore(tiny_image_processor())
    stream = QuestionStream(options.stream, seed=config.seed, style=style, image_store=images)
    print(f"written to {write_questions(options.output, stream, count=options.number)}")
