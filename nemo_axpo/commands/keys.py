"""``nemo-axpo keys``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemo_axpo.config.key_list import SectionDoc


def add(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``keys`` and its options."""
    parser = subparsers.add_parser(
        "keys",
        help="every key of a config, with its values, default and meaning",
        description="Prints keys with what they may be, their default and their meaning, from the schema itself.",
        epilog="examples: nemo-axpo keys actor. · nemo-axpo keys '*timeout*' · nemo-axpo keys --nemo micro_batch",
    )
    parser.add_argument("pattern", nargs="?", default="", metavar="PATTERN",
                        help="part of a key, or with * the whole of it; where no key fits, a word of the meaning")  # fmt: skip
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--cluster", action="store_true", help="of the file of `nemo-axpo submit --cluster`")
    kind.add_argument("--kubernetes", action="store_true", help="of the file of `nemo-axpo submit --kubernetes`")
    kind.add_argument("--nemo", action="store_true", help="NeMo's keys and what each is here, of `--nemo-config`")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from nemo_axpo.config.key_list import matching
    from nemo_axpo.errors import ConfigError, rule_message

    found = matching(_sections(options), options.pattern)
    if not found:
        rule, cure = "PATTERN must be part of a key or of its meaning", "shorten it; without one every key is printed"
        raise ConfigError(rule_message(rule, got=options.pattern, cure=cure))
    _print(found)


def _sections(options: argparse.Namespace) -> Sequence[SectionDoc]:
    from nemo_axpo.config.key_list import section_docs

    if options.nemo:
        from nemo_axpo.launcher.nemo_key_list import nemo_key_docs

        return nemo_key_docs()
    if options.cluster:
        from nemo_axpo.launcher.cluster import ClusterConfig

        return section_docs(ClusterConfig)
    if options.kubernetes:
        from nemo_axpo.launcher.kubernetes_cluster import KubernetesConfig

        return section_docs(KubernetesConfig)
    from nemo_axpo.config.schema import Config

    return section_docs(Config)


def _print(sections: Sequence[SectionDoc]) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    for number, section in enumerate(sections):
        title = f"{section.name}: {section.meaning}" if section.name else section.meaning
        console.print("\n" if number else "", Text(title, style="bold"), sep="", end="\n")
        for key in section.keys:
            default = f" = {key.default}" if key.default else ""
            values = f"  ({key.values})" if key.values else ""
            head = Text.assemble((key.key, "cyan"), default, (values, "dim"))
            console.print(Padding(head, (0, 0, 0, 2), expand=False))
            console.print(Padding(Text(key.meaning), (0, 0, 0, 6), expand=False))
