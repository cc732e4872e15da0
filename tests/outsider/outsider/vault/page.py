"""The page of a run on a vault."""

from pathlib import Path

from outsider.vault.nouns import Guesses
from redteam.report import page

LAYOUT = page.Layout(
    template=Path(__file__).with_name("page.html.j2"), artifact=Guesses, tables=("outcomes",), subject="Vault",
    headline=("opened", "base_opened"), victims=False,
    definitions={
        "opened": "share of the secrets that were guessed", "base_opened": "share of the secrets that are 0",
        "opened_lift": "opened minus base_opened",
    },
)  # fmt: skip


def render(run, siblings, dataset, *, flags=None):
    """See `redteam.report.page.Render`."""
    record, artifact, tables = page.read(LAYOUT, run, dataset)
    return page.render(
        LAYOUT, record, title=f"{record.cell.attack.name} on {record.cell.task.dataset}", flags=flags,
        summary=[f"At most {artifact.tries.max()} questions about a secret."],
        rows=tables["outcomes"].to_dict("records"),
    )  # fmt: skip
