#!/bin/sh
# plants.sh - does the simulation (sim.c) find what it is there to find?
#
#     test/plants.sh [NAME...]
#
# Each row of the table below plants an error in a copy of estoraje.c: in one
# function one piece of a line becomes another. It must be there exactly once,
# so that a row cannot go stale unnoticed. The simulation is built with that
# copy, and must find a violation within so many histories.
#
# From make: CC and COMPILE_FLAGS, as for any other compilation.
set -eu
cd "$(dirname "$0")/.."

# row NAME FUNCTION OLD NEW
table() {
    # accept_promised without the promise
    row no_promise part_least \
        'p->version == r->version ? 0' 'true ? 0'
    # a floor that is forgotten at a restart
    row forgotten_floor store_load \
        'part->floor = node->self.ceiling;' 'part->floor = 0;'
    # a read without settle
    row no_settle consistent_judge \
        'consistent_count(op, op->newest) >= op->quorum) {' 'true) {'
    # a 412 from a minority
    row refused_by_few consistent_decide \
        'else if (consistent_count(op, op->newest) >= op->quorum)' \
        'else if (!op->reads || consistent_count(op, op->newest) >= op->quorum)'
    # a recovering replica that counts
    row recovering_counts part_worth \
        'worth = part->recovering ?' 'worth = false ?'
    # a repair that ignores floors
    row repair_below_floor part_least \
        'if (how == HOW_MAJORITY)' \
        'if (how == HOW_MAJORITY || how == HOW_REPAIR)'
    # a majority of those who promised, in place of the owners
    row majority_of_few consistent_judge \
        'op->phase == PHASE_WRITE && oks >= op->quorum' \
        'op->phase == PHASE_WRITE && oks > (oks + waiting) / 2 && oks > 0'
}

HISTORIES=${HISTORIES:-3000}
SEED=${SEED:-1}
export HISTORIES SEED
out=build/plants
wanted=" $* "
failed=0

# Says that a plant was not found, or could not be planted.
miss() {
    echo "not ok $1: $2"
    failed=$((failed + 1))
}

row() {
    [ "$wanted" = "  " ] || case $wanted in *" $1 "*) ;; *) return 0 ;; esac
    PLANT_IN=$2 PLANT_OLD=$3 PLANT_NEW=$4 awk '
        BEGIN { name = ENVIRON["PLANT_IN"] "("; old = ENVIRON["PLANT_OLD"] }
        /^[a-z]/ && index($0, name) { inside = 1 }
        inside && (at = index($0, old)) {
            $0 = substr($0, 1, at - 1) ENVIRON["PLANT_NEW"] \
                 substr($0, at + length(old))
            count++
        }
        /^}/ || /^[a-z].*;$/ { inside = 0 }
        { print }
        END { exit count != 1 }' "${SOURCE:-estoraje.c}" >"$out/$1.c" ||
        { miss "$1" "its line is not in $2() exactly once"; return 0; }
    # shellcheck disable=SC2086 # flags are words
    ${CC:-cc} $COMPILE_FLAGS -I. -DPROGRAM="\"../$out/$1.c\"" -o "$out/$1" \
        test/sim.c ring.c
    code=0
    "$out/$1" >"$out/$1.log" 2>&1 || code=$?
    if [ $code = 1 ] && said=$(grep 'sim: failed' "$out/$1.log"); then
        echo "ok $1: $said"
    else
        miss "$1" "not found in $HISTORIES histories (exit $code)"
    fi
}

: "${COMPILE_FLAGS:=-std=c11 -D_POSIX_C_SOURCE=200809L -pthread -O1}"
mkdir -p "$out"
table
[ $failed = 0 ]
