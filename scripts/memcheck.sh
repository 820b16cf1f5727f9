#!/bin/sh
# Runs the Rust tests where wrong uses of memory end them: under valgrind's memcheck (reads of what nobody wrote, leaks) and
# with the compiler's address sanitizer (reads and writes past an end, or after a free). What is missing here is said.
set -eu
cases=${PROPTEST_CASES:-4} # valgrind is forty times slower

tests() { # tests ARGS: builds the tests, prints their programs, one a line, each after the folder it runs in
    cargo test --locked --package stp-core --package stp-tasks --no-run --message-format=json "$@" |
        sed -n 's|.*"manifest_path":"\([^"]*\)/Cargo.toml".*"executable":"\([^"]*\)".*|\1\n\2|p'
}

each() { # each COMMAND: runs every program of standard input under it
    while read -r folder && read -r program; do
        echo "== ${program##*/}"
        (cd "$folder" && PROPTEST_CASES=$cases "$@" "$program" --test-threads 1 --quiet)
    done
}

if command -v valgrind >/dev/null 2>&1; then
    programs=$(tests)
    echo "$programs" | each valgrind --quiet --error-exitcode=9 --leak-check=full --show-leak-kinds=definite,indirect \
        --errors-for-leak-kinds=definite,indirect
    echo "== valgrind: nothing found"
else
    echo "== valgrind: skipped, it is not installed (apt-get install valgrind)"
fi

host=$(rustc --version --verbose | sed -n 's/^host: //p')
case $host in
x86_64-unknown-linux-gnu | aarch64-unknown-linux-gnu | *-apple-darwin)
    export RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/asan"
    programs=$(tests --target "$host") # with --target the flag is not for build scripts
    echo "$programs" | each env
    echo "== address sanitizer: nothing found"
    ;;
*) echo "== address sanitizer: skipped, there is none for $host" ;;
esac
