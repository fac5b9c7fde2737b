"""`tidegate convert`: a dense text encoder into experts, by becoming `python -m regions.models.convert`."""

import click

from app.commands.become import become


@click.command(
    "convert",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.pass_context
def command(context: click.Context) -> None:
    """Turn a dense text encoder into a dynamic mixture of experts.

    Replaces itself by `python -m regions.models.convert`, whose options these are: the gateway never loads torch.
    """
    become("regions.models.convert", context.args)
