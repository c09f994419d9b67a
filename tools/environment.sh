# shellcheck shell=bash
# Virtual environments of the clone, for the scripts beside it: source this file, then
#
#   ensure_current_environment   $CURRENT_VENV: the newest TensorFlow, and the extras
#                                [beam,dev,edge,serving,video]
#   ensure_addons_environment    $ADDONS_VENV: TensorFlow 2.15.1 and TensorFlow Addons
#
# Each returns at once where nothing has changed, 0 if the environment is ready, 1 if
# it could not be made, and 2 if no suitable Python was found; each failure is one line
# on standard error. Nothing outside the clone is used but that Python and pip.

# Packages from elsewhere must neither hide nor replace those of the environment.
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
# VENV is an absolute path; CONSTRAINTS is relative to the project's root; the first
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
    echo "That failed; making $venv anew." >&2
  fi
  if ! python=$(find_python "$@"); then
    echo "No Python $(join_versions "$@") that runs and has venv was found." >&2
    return 2
  fi
  echo "Making $venv with $("$python" --version)."
  if ! "$python" -m venv --clear "$venv"; then
    echo "$python -m venv $venv failed." >&2
    return 1
  fi
  install_project "$venv" "$extras" "$constraints" "$stamp"
}

# describe_requirements EXTRAS CONSTRAINTS: prints all that decides what is installed.
describe_requirements() {
  echo "extras: $1"
  cat "$PROJECT_ROOT/setup.py" "$PROJECT_ROOT/$2"
}

# is_sound VENV VERSION...: whether the environment stands at its own path (a moved or
# copied one runs another's programs), with one of these versions and a pip that runs.
is_sound() {
  local venv=$1 report version
  shift
  report=$("$venv/bin/pip" --version 2>/dev/null </dev/null) || return 1
  for version in "$@"; do
    [[ $report == *" from $venv/"*"(python $version)" ]] && return 0
  done
  return 1
}

# find_python VERSION...: prints the path of the first that really runs. A command that
# exists may still fail (a pyenv shim whose version is not selected, a Debian Python
# without venv), so each is executed. PYENV_VERSION selects the version for a shim and
# means nothing to other Pythons. The base of an active environment is taken instead of
# that environment, which may be the one to be made anew.
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

# install_project VENV EXTRAS CONSTRAINTS STAMP: the clone itself, editable, with the
# locked versions. The stamp is written last, so that a run cut short is not trusted.
install_project() {
  local venv=$1 extras=$2 constraints=$3 stamp=$4 quiet=(--quiet --quiet)
  if [[ -t 1 ]]; then
    quiet=(--progress-bar on)
  fi
  echo "Installing [$extras] with $constraints into $venv; this takes some minutes."
  rm -f "$venv/requirements.stamp"
  if ! "$venv/bin/python" -m pip install "${quiet[@]}" --disable-pip-version-check \
    --no-input --constraint "$PROJECT_ROOT/$constraints" \
    --editable "${PROJECT_ROOT}[$extras]" </dev/null; then
    echo "pip install of [$extras] with $constraints failed." >&2
    return 1
  fi
  printf '%s\n' "$stamp" >"$venv/requirements.stamp"
}

# join_versions 3.11 3.12 3.13: prints "3.11, 3.12 or 3.13".
join_versions() {
  local text=$1
  shift
  while (($# > 1)); do
    text="$text, $1"
    shift
  done
  echo "$text${1:+ or $1}"
}
