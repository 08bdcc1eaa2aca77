#!/bin/sh
# fuzz.sh PROGRAM SECONDS - feeds each target of test/fuzz.c for so long,
# beginning with what is in test/corpus. New inputs that reach more of the
# program are kept in build/fuzz/TARGET, and what breaks it in build/fuzz.
set -u
dir=build/fuzz

for TARGET in request reply json record peer; do
    export TARGET
    mkdir -p "$dir/$TARGET"
    if "$1" -help=1 2>&1 | grep -q max_total_time; then
        "$1" -max_total_time="$2" -max_len=20000 -timeout=120 \
            -artifact_prefix="$dir/$TARGET-" "$dir/$TARGET" \
            "test/corpus/$TARGET" >"$dir/$TARGET.log" 2>&1
    else
        "$1" "test/corpus/$TARGET"/* >"$dir/$TARGET.log" 2>&1 &&
            echo "no libFuzzer: ran the corpus only" >>"$dir/$TARGET.log"
    fi || {
        tail -n 60 "$dir/$TARGET.log"
        echo "fuzz: TARGET=$TARGET failed; the log is $dir/$TARGET.log"
        exit 1
    }
    echo "$TARGET: $(tail -n 1 "$dir/$TARGET.log")"
done
