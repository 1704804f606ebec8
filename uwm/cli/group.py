"""The program and the order of its verbs."""

from __future__ import annotations

import click

from .flags import Verb

VERBS = "edit demo try tune score select apply revert diff inspect push eval calib-check finetune compare env".split()


class _Group(click.Group):
    """Lists verbs in the order in which they are used."""

    command_class = Verb

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted(self.commands, key=VERBS.index)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="uwm")
def uwm() -> None:
    """Make CLIP-like vision-language models safer by editing their weights, without training."""
