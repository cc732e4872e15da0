"""Write the published JSON Schema of Record v1 from its models: `python -m scripts.write_schema`."""

from __future__ import annotations

import json
from pathlib import Path

from redteam.core import record

if __name__ == "__main__":
    path = Path(record.__file__).parents[1] / "schema" / "record-v1.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record.json_schema(), indent=1, sort_keys=True) + "\n")
    print(path)
