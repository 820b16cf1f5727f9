#!/bin/sh
# What a bare machine must have. A missing tool gives one line that says what to install, and stops.
#   sh scripts/tools.sh rust      a C compiler and a recent cargo
#   sh scripts/tools.sh python    prints a Python >= 3.10 that can make virtual environments; $PYTHON, if set, is the one
#   sh scripts/tools.sh space     the least room that an installation takes, here and where pip unpacks
#   sh scripts/tools.sh failed    after an installation that failed: whether more room would have helped
#   sh scripts/tools.sh torch PYTHON VENV   lets an environment use the torch that its interpreter has, if it is recent
set -u

LEAST=2 # GB: the environment with a torch for CPUs, and what cargo builds
WHOLE=8 # GB: with the CUDA libraries that torch depends on under Linux

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

free_gb() { # whole GB that are free where the folder $1 is; a lot where df does not say
    df -Pk "$1" 2>/dev/null | awk 'NR == 2 && $4 ~ /^[0-9]+$/ { print int($4 / 1048576); said = 1 } END { if (!said) print 999 }'
}

check_space() {
    for folder in . "${TMPDIR:-/tmp}"; do
        free=$(free_gb "$folder")
        [ "$free" -ge "$LEAST" ] ||
            missing "$LEAST GB of free disk ($WHOLE with CUDA libraries) in $(cd "$folder" && pwd), and $free are: free some, or set TMPDIR if it is /tmp that is full"
    done
}

after_failure() {
    for folder in . "${TMPDIR:-/tmp}"; do
        free=$(free_gb "$folder")
        [ "$free" -ge "$WHOLE" ] ||
            missing "$WHOLE GB of free disk for a torch with CUDA libraries, and $(cd "$folder" && pwd) has $free: if that is what failed, free some, set TMPDIR, or install a CPU-only torch first (CONTRIBUTING.md)"
    done
}

share_torch() { # the folder stands behind the environment's own, so what is installed there goes first
    [ "${TORCH:-}" != new ] || return 0
    found=$("$1" -c '
import contextlib, importlib.metadata
with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError):
    torch = importlib.metadata.distribution("torch")
    if [int(part) for part in torch.version.split(".")[:2]] >= [2, 4]:
        print(torch.version, torch.locate_file(""))') && [ -n "$found" ] || return 0
    site=$("$2/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "torch===${found%% *}" >"$2/torch.txt"
    echo "${found#* }" >"$site/torch_of_the_base.pth"
    echo "== torch ${found%% *} of ${found#* } is used; TORCH=new installs another (after make clean)"
}

case ${1:-} in
rust) check_rust ;;
python) find_python ;;
space) check_space ;;
failed) after_failure ;;
torch) share_torch "$2" "$3" ;;
*) missing "an argument to scripts/tools.sh: rust, python, space, failed or torch" ;;
esac
