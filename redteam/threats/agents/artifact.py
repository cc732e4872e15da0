"""What a third party says to an agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from redteam.core.arrays import check_sizes, save_arrays
from redteam.threats.agents.nouns import Question, Script, Session


@dataclass(frozen=True)
class Scripts:
    """What a third party will say to an agent: a script for each of n questions, in the planned order.

    finish: how the making of each ended (`redteam.llm.language.Finish`; `stop`: it ran its course). queries: (n,)
    int64, messages it put to the agent. notes: what the attack has to say of itself, as plain JSON values.
    """

    kind: ClassVar[str] = "scripts"

    scripts: tuple[Script, ...]
    finish: tuple[str, ...]
    queries: np.ndarray
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scripts", tuple(self.scripts))
        object.__setattr__(self, "finish", tuple(self.finish))
        check_sizes(self, ("scripts", "finish", "queries"))

    @property
    def ids(self) -> tuple[str, ...]:
        """The questions' ids."""
        return tuple(s.question.id for s in self.scripts)

    def save(self, path: Path) -> str:
        """Write to `path` (`.npz`). Returns the file's sha256."""
        scripts = [
            {"question": asdict(s.question), "sessions": [asdict(one) for one in s.sessions]}
            for s in self.scripts
        ]
        meta = {"kind": self.kind, "scripts": scripts, "finish": list(self.finish), "notes": dict(self.notes)}
        return save_arrays(path, {"queries": self.queries}, meta)

    @classmethod
    def of(cls, meta: Mapping[str, Any], arrays: Mapping[str, Any]) -> Scripts:
        """From what `save` wrote."""
        scripts = tuple(
            Script(
                question=Question(**s["question"]),
                sessions=tuple(
                    Session(**{**one, "messages": tuple(one["messages"])}) for one in s["sessions"]
                ),
            )
            for s in meta["scripts"]
        )
        return cls(**{**meta, "scripts": scripts}, **arrays)
