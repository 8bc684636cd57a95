"""``nemo-axpo tool-server``."""

from __future__ import annotations

import argparse

from nemo_axpo.commands.options import add_config_options, check, composed_config


def add(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``tool-server`` and its options."""
    parser = subparsers.add_parser(
        "tool-server",
        help="run tools for trainers on other machines",
        description="Serves the tools of tools.names over HTTP to clients that know the token (NEMO_AXPO_TOOL_TOKEN).",
        epilog="example: NEMO_AXPO_TOOL_TOKEN=… nemo-axpo tool-server tools.names=[python] --host 0.0.0.0 --port 8900",
    )
    add_config_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=8900, help="0 takes a free one and prints it (default: %(default)s)"
    )
    parser.add_argument(
        "--max-concurrent-calls", type=int, default=16, metavar="N", help="further ones wait (default: 16)"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from nemo_axpo.tools.server.command import serve

    config = composed_config(options, settings={})
    check(config, needs_policy=False)
    serve(config, host=options.host, port=options.port, max_concurrent_calls=options.max_concurrent_calls)
