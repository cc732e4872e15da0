"""A command that this threat brings."""

import click


@click.command()
def vault():
    """Print the secrets of the embedded vault."""
    from outsider.vault.seam import load

    click.echo(" ".join(map(str, load("vault-mini", None).values)))
