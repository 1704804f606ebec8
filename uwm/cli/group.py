"""The program's name, and how its verbs are listed."""

from __future__ import annotations

import click

from .flags import Verb

OPENING = ("arch", "quick_gelu", "key", "device", "dtype", "revision", "cache_dir", "offline")  # keywords of uwm.load


VERBS = (
    *("edit", "demo", "score", "select", "apply", "revert", "diff", "inspect", "push", "eval", "calib-check"),
    *("finetune", "compare", "env"),
)


class _Group(click.Group):
    """Verbs in the order in which they are used."""

    command_class = Verb

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted(self.commands, key=VERBS.index)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="uwm")
def uwm() -> None:
    """Make CLIP-like vision-language models safer by editing their weights, without training."""
