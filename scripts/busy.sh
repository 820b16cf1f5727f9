#!/bin/sh
# Runs `make test` twice in a row beside four busy loops, in a new clone whose folder has a space, without a home folder. What is
# committed is tested. Arguments go to pytest.
set -eu
room=$(mktemp -d)
loops=
trap 'kill $loops 2>/dev/null || true; rm -rf "$room"' EXIT
trap 'exit 130' INT TERM
git clone --quiet . "$room/a folder"
for _ in 1 2 3 4; do
    if command -v setsid >/dev/null 2>&1; then # of sessions of their own: Linux shares the time of a core by session
        setsid sh -c 'while :; do :; done' &
    else
        sh -c 'while :; do :; done' &
    fi
    loops="$loops $!"
done
for run in 1 2; do
    echo "== run $run of 2, beside four busy loops"
    (cd "$room/a folder" && env -u HOME make --no-print-directory test ARGS="$*")
done
