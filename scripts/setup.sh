#!/usr/bin/env bash
# Make a virtual environment with confide and what demo and tests need:  scripts/setup.sh [FOLDER] [EXTRAS]
# Plain Python 3.11+ with venv and pip. CONFIDE_UV=1 uses uv instead, if it is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
extras=${2:-dev}
stamp="$venv/.confide-$(cat pyproject.toml constraints/dev.txt | cksum | cut -d' ' -f1)-${extras//,/_}"
[ -f "$stamp" ] && exit 0

python=${PYTHON:-python3}
"$python" - <<'PY'
import sys
if sys.version_info < (3, 11):
    sys.exit(f"confide needs Python 3.11 or newer, this is {sys.version.split()[0]}; set PYTHON=/path/to/python3.11")
PY
echo "Setting up $venv (first time only, a few minutes) ..."
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
if [ "${CONFIDE_UV:-0}" = 1 ]; then
  pip() { uv pip "$1" --python "$venv/bin/python" "${@:2}"; }
else
  pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
fi
torch=$(grep -E '^torch==' constraints/dev.txt)
if ! "$venv/bin/python" -c "import torch" 2>/dev/null; then
  if command -v nvidia-smi >/dev/null 2>&1; then
    pip install --quiet "$torch"
  else
    # No NVIDIA driver: the CPU build is a tenth of the size. Where that index cannot be reached, the ordinary one serves.
    pip install --quiet --retries 0 --timeout 10 --index-url https://download.pytorch.org/whl/cpu "$torch" 2>/dev/null ||
      pip install --quiet "$torch"
  fi
fi
pip install --quiet --constraint constraints/dev.txt --editable ".[$extras]"
rm -f "$venv"/.confide-*
touch "$stamp"
echo "Ready: $venv"
