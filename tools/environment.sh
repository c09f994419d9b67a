# shellcheck shell=bash
# Virtual environments of the clone, for the scripts in this folder. Source this file:
#
#   ensure_current_environment   $CURRENT_VENV: the newest TensorFlow, and the extras
#                                [beam,dev,edge,serving,video]
#   ensure_addons_environment    $ADDONS_VENV: TensorFlow 2.15.1 and TensorFlow Addons
#
# Each returns immediately if nothing has changed: 0 if the environment is ready, 1 if it
# could not be created, and 2 if no suitable Python was found; each failure prints one
# line to stderr. Only that Python and pip are used from outside the clone.

# Other packages must neither hide nor replace those of the environment.
unset PYTHONHOME PYTHONPATH

PROJECT_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
CURRENT_VENV=$PROJECT_ROOT/.venv
ADDONS_VENV=$PROJECT_ROOT/.venv-addons

# print_help: the comment at the top of the script that calls it.
print_help() {
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$PROJECT_ROOT/tools/${BASH_SOURCE[1]##*/}"
}

ensure_current_environment() {
  ensure_environment "$CURRENT_VENV" beam,dev,edge,serving,video tools/constraints.txt 3.11 3.12 3.13
}

ensure_addons_environment() {
  ensure_environment "$ADDONS_VENV" addons,test tools/constraints-addons.txt 3.11 3.10
}

# ensure_environment VENV EXTRAS CONSTRAINTS VERSION...
# VENV is an absolute path; CONSTRAINTS is relative to the project root; the first
# VERSION that is found is used.
ensure_environment() {
  local venv=$1 extras=$2 constraints=$3 stamp python
  shift 3
  stamp=$(describe_requirements "$extras" "$constraints") || return 1
  if is_sound "$venv" "$@"; then
    if [[ -f $venv/requirements.stamp && $stamp == "$(<"$venv/requirements.stamp")" ]]
    then
      return 0
    fi
    install_project "$venv" "$extras" "$constraints" "$stamp" && return 0
    echo "That failed; creating $venv again." >&2
  fi
  if ! python=$(find_python "$@"); then
    echo "No Python that runs and has venv was found; one of these will do: $*." >&2
    return 2
  fi
  echo "Creating $venv with $("$python" --version)."
  if ! "$python" -m venv --clear "$venv"; then
    echo "$python -m venv $venv failed." >&2
    return 1
  fi
  install_project "$venv" "$extras" "$constraints" "$stamp"
}

# describe_requirements EXTRAS CONSTRAINTS: prints everything that the installation
# depends on.
describe_requirements() {
  echo "extras: $1"
  cat "$PROJECT_ROOT/setup.py" "$PROJECT_ROOT/$2"
}

# is_sound VENV VERSION...: whether the environment is at its original path (a moved or
# copied one runs programs of another), with one of these versions and a working pip.
is_sound() {
  local venv=$1 report version
  shift
  report=$("$venv/bin/pip" --version 2>/dev/null </dev/null) || return 1
  for version in "$@"; do
    [[ $report == *" from $venv/"*"(python $version)" ]] && return 0
  done
  return 1
}

# find_python VERSION...: prints the path of the first Python that works. An existing
# command may still fail (a pyenv shim whose version is not selected, a Debian Python
# without venv), so each is executed. PYENV_VERSION selects the version of a shim; other
# Pythons ignore it. Of an active environment the base Python is used, since the
# environment may be the one to be replaced.
find_python() {
  local probe version selected name path
  probe='
import ensurepip, ssl, sys, venv
if "%d.%d" % sys.version_info[:2] not in sys.argv[1:]:
    sys.exit(1)
print(getattr(sys, "_base_executable", sys.executable))
'
  for version in "$@"; do
    for selected in "${PYENV_VERSION:-}" "$version"; do
      path=$(PYENV_VERSION=$selected "python$version" -c "$probe" "$version" \
        2>/dev/null </dev/null) || continue
      echo "$path"
      return 0
    done
  done
  for name in python3 python; do
    path=$("$name" -c "$probe" "$@" 2>/dev/null </dev/null) || continue
    echo "$path"
    return 0
  done
  return 1
}

# install_project VENV EXTRAS CONSTRAINTS STAMP: installs the clone, editable, with the
# locked versions. The stamp is written last, so an interrupted installation is repeated.
install_project() {
  local venv=$1 extras=$2 constraints=$3 stamp=$4 quiet=(--quiet --quiet)
  if [[ -t 1 ]]; then
    quiet=(--progress-bar on)
  fi
  echo "Installing [$extras] with $constraints into $venv; this takes a few minutes."
  rm -f "$venv/requirements.stamp"
  if ! "$venv/bin/python" -m pip install "${quiet[@]}" --disable-pip-version-check \
    --no-input --constraint "$PROJECT_ROOT/$constraints" \
    --editable "${PROJECT_ROOT}[$extras]" </dev/null; then
    echo "pip install of [$extras] with $constraints failed." >&2
    return 1
  fi
  printf '%s\n' "$stamp" >"$venv/requirements.stamp"
}
