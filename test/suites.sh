#!/usr/bin/env bash
#
# suites.sh - runs suites, each by make test-SUITE, and counts those that pass.
#
#     test/suites.sh "SUITE..." "SUITE..."
#
# The second ones need the processor only, and no clock: they run beside the
# first, in what these leave of it, and what they print comes at the end.
set -u
# shellcheck disable=SC2086 # the words are to be split

out=build/test/beside.log
results=build/test/results
mkdir -p build/test
: >"$results"

run() {
    local suite result began
    for suite; do
        echo "== $suite"
        began=$(date +%s)
        result=passed
        $MAKE --no-print-directory "test-$suite" </dev/null ||
            result=FAILED
        echo "$result $suite, $(($(date +%s) - began)) s" | tee -a "$results"
    done
}

set -m # it gets a process group, so that it can be ended with all it started
{
    renice -n 19 -p $BASHPID >/dev/null
    run $2
} >"$out" 2>&1 &
set +m
trap 'kill -- -$! 2>/dev/null' EXIT
run $1
wait $!
trap - EXIT
cat "$out"
grep ^FAILED "$results"
passed=$(grep -c ^passed "$results")
failed=$(grep -c ^FAILED "$results")
echo "suites: $passed passed, $failed failed"
[ "$failed" = 0 ]
