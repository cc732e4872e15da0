#!/bin/sh
# The Flower adapter, in a real simulation. flwr pins protobuf below what other extras need, so it gets a
# virtual environment of its own: $1, else .venv-flower. PYTHON picks the interpreter it is made with.
set -eu
cd "$(dirname "$0")/.."
venv="${1:-.venv-flower}"
if [ ! -x "$venv/bin/python" ]; then
    "${PYTHON:-python3}" -m venv "$venv"
fi
"$venv/bin/python" -c "import flwr, ray, hypothesis, pytest, redteam" 2>/dev/null ||
    "$venv/bin/python" -m pip install --quiet -e '.[flower]' 'pytest>=8.3' 'hypothesis>=6.110'
FLWR_TELEMETRY_ENABLED=0 exec "$venv/bin/python" -m pytest tests/integrations/flower
