#!/bin/sh
# What a bare machine must have. A missing tool gives one line that says what to install, and stops.
#   sh scripts/tools.sh rust      a C compiler and a recent cargo
#   sh scripts/tools.sh python    prints a Python >= 3.10 that can make virtual environments; $PYTHON, if set, is the one
set -u

missing() {
    echo "stp_rs needs $1" >&2
    exit 1
}

check_rust() {
    command -v cc >/dev/null 2>&1 ||
        missing "a C compiler (cc): apt-get install build-essential, dnf install gcc, or xcode-select --install"
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    version=$(cargo --version 2>/dev/null) ||
        missing "cargo (Rust $wanted or newer): install it from https://rustup.rs and open a new shell"
    version=${version#cargo }
    minor=${version#*.}
    [ "${version%%.*}" -gt "${wanted%%.*}" ] || [ "${minor%%.*}" -ge "${wanted#*.}" ] ||
        missing "Rust $wanted or newer, but found cargo ${version%% *}: rustup update stable"
}

find_python() {
    novenv=
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3 python3.14 python3.13 python3.12 python3.11 python3.10 python
    fi
    for candidate in "$@"; do
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 || continue
        if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
        novenv=${novenv:-$candidate}
    done
    [ -z "$novenv" ] || missing "the venv module of $novenv: apt-get install python3-venv"
    [ -z "${PYTHON:-}" ] || missing "Python 3.10 or newer, and PYTHON=$PYTHON is not"
    missing "Python 3.10 or newer: apt-get install python3 python3-venv, or https://www.python.org/downloads"
}

case ${1:-} in
rust) check_rust ;;
python) find_python ;;
*) missing "an argument to scripts/tools.sh: rust or python" ;;
esac
