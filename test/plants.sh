#!/bin/sh
# plants.sh - does the simulation (sim.c) find what it is there to find?
#
#     test/plants.sh [NAME...]
#
# Each row of the table below plants an error in a copy of estoraje.c: in one
# function one expression becomes another. It must be there exactly once, so
# that a row cannot go stale unnoticed. One copy has all of them, and a number
# in the environment says which one is in force: so there is one compilation,
# and what each run shows is due to its plant alone. With none in force that
# same program must find nothing. A plant is found only when what the clients
# saw breaks a promise, or replicas differ in the end: a crash, or a cluster
# that does not come to rest, would show nothing about the checker.
#
# From make: CC and COMPILE_FLAGS, as for any other compilation.
set -eu
cd "$(dirname "$0")/.."

# row NAME FUNCTION OLD NEW
table() {
    # accept_promised without the promise
    row no_promise part_least \
        'p->version == r->version' 'p->version == r->version || true'
    # a floor that is forgotten at a restart
    row forgotten_floor store_load 'node->self.ceiling' 0
    # a read without settle; what repair has settled is not a client's here
    row no_settle consistent_judge \
        'consistent_count(op, op->newest) >= op->quorum' \
        '!op->forwarded || consistent_count(op, op->newest) >= op->quorum'
    # a 412 from a minority
    row refused_by_few consistent_decide \
        'consistent_count(op, op->newest) >= op->quorum' \
        '!op->reads || consistent_count(op, op->newest) >= op->quorum'
    # a recovering replica that counts
    row recovering_counts part_worth 'part->recovering' false
    # a repair that ignores floors
    row repair_below_floor part_least \
        'how == HOW_MAJORITY' 'how == HOW_MAJORITY || how == HOW_REPAIR'
    # a version that is told before the disks of a majority have it
    row told_unsynced consistent_note 'p->unsynced' false
    # a majority of those who promised, in place of the owners
    row majority_of_few consistent_judge \
        'op->phase == PHASE_WRITE && oks >= op->quorum' \
        'op->phase == PHASE_WRITE &&
        oks > (unsigned)__builtin_popcountll(op->promised) / 2'
}

HISTORIES=${HISTORIES:-40000}
SEED=${SEED:-1}
export HISTORIES SEED
out=build/plants
copy=$out/planted.c
wanted=" $* "
names=
failed=0

# Says that a plant was not found, or could not be planted.
miss() {
    echo "not ok $1: $2"
    failed=$((failed + 1))
}

# Plants one error, beside those before it, with the number that is next.
row() {
    number=$((number + 1))
    PLANT=$number PLANT_IN=$2 PLANT_OLD=$3 PLANT_NEW=$4 awk '
        BEGIN {
            name = ENVIRON["PLANT_IN"] "("
            old = ENVIRON["PLANT_OLD"]
            new = "(plant == " ENVIRON["PLANT"] " ? (" ENVIRON["PLANT_NEW"] \
                  ") : (" old "))"
        }
        /^[a-z]/ && index($0, name) { inside = 1 }
        inside && (at = index($0, old)) {
            $0 = substr($0, 1, at - 1) new substr($0, at + length(old))
            count++
        }
        /^}/ || /^[a-z].*;$/ { inside = 0 }
        { print }
        END { exit count != 1 }' "$copy" >"$copy.next" ||
        { miss "$1" "its expression is not in $2() exactly once"; return 0; }
    mv "$copy.next" "$copy"
    [ "$wanted" = "  " ] || case $wanted in *" $1 "*) ;; *) return 0 ;; esac
    names="$names $1=$number"
}

# Runs the simulation with the plant of that number in force.
run() {
    code=0
    [ "$1" != told_unsynced ] || export DARK=1 # it takes a loss of power
    [ "$1" != repair_below_floor ] || export MISSED=1 # and it much repair
    PLANT=$2 "$out/sim" >"$out/$1.log" 2>&1 || code=$?
    echo "$code" >"$out/$1.code"
}

# What became of it: sim.c says first what was violated, and last after how
# many histories.
judge() {
    said=$(sed -n 2p "$out/$1.log")
    case $(cat "$out/$1.code"):$said in
    1:key\ [0-9]*": "* | 1:the\ replicas\ of\ partition\ *) ;;
    0:*) miss "$1" "not found in $HISTORIES histories"; return 0 ;;
    *) miss "$1" "another failure: $said"; return 0 ;;
    esac
    echo "ok $1:" \
        "$(sed -n 's/^sim: failed.*\(after [0-9]* histories\).*/\1/p' \
            "$out/$1.log"): $said"
}

: "${COMPILE_FLAGS:=-std=c11 -D_POSIX_C_SOURCE=200809L -pthread -O1}"
mkdir -p "$out"
cp "${SOURCE:-estoraje.c}" "$copy"
number=0
table
# shellcheck disable=SC2086 # flags are words
${CC:-cc} $COMPILE_FLAGS -I. -DPLANTS -DPROGRAM="\"../$copy\"" -o "$out/sim" \
    test/sim.c ring.c
for plant in $names; do
    run "${plant%=*}" "${plant#*=}" &
done
wait
for plant in $names; do
    judge "${plant%=*}"
done
[ $failed = 0 ]
