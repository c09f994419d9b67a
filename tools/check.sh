#!/usr/bin/env bash
# Runs all checks of the project, from a fresh clone: sets up the environments, then runs
# ruff, import-linter and pytest on the current TensorFlow, with a short form of the fault
# tests (all of them: python -m pytest -m faults), then the tests of models, losses,
# training and serving that depend on the TensorFlow version on the [addons] stack.
#
#   tools/check.sh [--fast] [-- PYTEST_ARGUMENT...]
#
#   --fast    without the addons stack and without the tests that are slow, train a run
#             or export a network (python -m pytest --fast)
#   --help    this text
#
# Arguments after -- are passed to pytest on both stacks. Prints a line per stage at the
# end; the exit status is 1 if any stage failed.
set -euo pipefail

# shellcheck source=tools/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$PROJECT_ROOT"

stages=()
closing_lines=()
failures=0

main() {
  local fast=false status=0 chosen=(-m "not faults or not slow")
  # One worker per core, limited by memory (a gigabyte each); the tests of a file share
  # trained runs, so they stay on one worker.
  local pytest_arguments=(
    --durations=10 --numprocesses=auto --maxprocesses=8 --dist=loadfile
    --no-loadscope-reorder # tests/conftest.py defines the order.
  )
  while (($# > 0)); do
    case $1 in
      --fast)
        fast=true
        chosen=(--fast -rfE) # Without a line for each test that is skipped.
        ;;
      --help | -h)
        print_help
        return 0
        ;;
      --)
        shift
        pytest_arguments+=("$@")
        break
        ;;
      *)
        echo "Unknown argument $1; tools/check.sh --help shows the known ones." >&2
        return 2
        ;;
    esac
    shift
  done

  if stage "environment" ensure_current_environment; then
    stage "ruff check" "$CURRENT_VENV/bin/python" -m ruff check . || true
    stage "ruff format" "$CURRENT_VENV/bin/python" -m ruff format --check . || true
    stage "import-linter" "$CURRENT_VENV/bin/lint-imports" --no-cache || true
    stage "pytest" run_pytest "$CURRENT_VENV" "${chosen[@]}" "${pytest_arguments[@]}" ||
      true
  fi
  if [[ $fast == false ]]; then
    stage "addons: environment" ensure_addons_environment || status=$?
    if ((status == 0)); then
      stage "addons: pytest" run_pytest "$ADDONS_VENV" \
        -m "not faults and not once" "${pytest_arguments[@]}" \
        tests/models tests/losses tests/training tests/serving || true
    fi
  fi
  summarize
}

# stage NAME COMMAND...: runs the command under a heading and records its outcome and
# time. Status 2 of the addons environment means that this machine has no suitable
# Python, which is not a failure.
stage() {
  local name=$1 start=$SECONDS outcome=passed status=0
  shift
  printf '\n== %s\n' "$name"
  "$@" || status=$?
  if ((status == 2)) && [[ $name == "addons: environment" ]]; then
    outcome=skipped
    echo "The addons stack is not tested here."
  elif ((status != 0)); then
    outcome=FAILED
    failures=$((failures + 1))
  fi
  stages+=("$(printf '%-8s %5d s  %s' "$outcome" "$((SECONDS - start))" "$name")")
  return "$status"
}

# run_pytest VENV ARGUMENT...: also records pytest's last line for the summary.
run_pytest() {
  local venv=$1 status=0 closing
  shift
  "$venv/bin/python" -m pytest "$@" 2>&1 | tee "$log" || status=$?
  closing=$(grep -E '^(=+ )?([0-9]+ [a-z]+|no tests ran).* in [0-9.]+s' "$log" |
    tail -n 1) ||
    closing="pytest ended with status $status and without a closing line."
  closing_lines+=("$closing")
  return "$status"
}

summarize() {
  printf '\n== Summary (%d s)\n' "$SECONDS"
  printf '%s\n' "${stages[@]}"
  if ((${#closing_lines[@]} > 0)); then
    printf '%s\n' "${closing_lines[@]}"
  fi
  ((failures == 0))
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# pytest handles SIGINT and returns; without this trap the next stage would start.
trap 'exit 130' INT
main "$@"
