#!/usr/bin/env bash
# Asks a public list of vulnerabilities about every locked version (pip-audit).
#
#   tools/audit.sh [LOCK...]
#
# Without arguments: all locks, tools/constraints*.txt. It needs the network, and its
# answer changes from day to day without a change here, so check.sh does not run it: run
# it before a release and when a lock is written anew. Nothing is installed but
# pip-audit, into .venv-audit of the clone.
#
# Ends with a line for each lock, and with status 1 if a locked version has a known
# vulnerability or could not be asked about.
set -euo pipefail

# shellcheck source=tools/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  print_help
  exit 0
fi
cd "$PROJECT_ROOT"

venv=$PROJECT_ROOT/.venv-audit
locks=("$@")
if ((${#locks[@]} == 0)); then
  locks=(tools/constraints*.txt)
fi
for lock in "${locks[@]}"; do
  if [[ ! -f $lock ]]; then
    echo "There is no lock $lock." >&2
    exit 1
  fi
done

if ! "$venv/bin/python" -m pip_audit --version >/dev/null 2>&1; then
  python=$(find_python 3.11 3.12 3.13 3.10) || {
    echo "No Python 3.10 to 3.13 that runs and has venv was found." >&2
    exit 1
  }
  "$python" -m venv --clear "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --no-input "pip-audit>=2.7,<3"
fi

failures=0
closing_lines=()
for lock in "${locks[@]}"; do
  printf '\n== %s\n' "$lock"
  # A lock is whole, so nothing is resolved or built: each line is asked about as it is.
  if "$venv/bin/python" -m pip_audit --strict --no-deps --disable-pip \
    --progress-spinner off --requirement "$lock"; then
    closing_lines+=("clean     $lock")
  else
    closing_lines+=("NOT CLEAN $lock")
    failures=$((failures + 1))
  fi
done
printf '\n== Summary\n'
printf '%s\n' "${closing_lines[@]}"
((failures == 0))
