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
        'consistent_decided(op)' '!op->forwarded || consistent_decided(op)'
    # a 412 from a minority
    row refused_by_few consistent_decide \
        'consistent_decided(op)' '!op->reads || consistent_decided(op)'
    # a recovering replica that counts
    row recovering_counts part_worth 'part->recovering' false
    # a repair that ignores floors
    row repair_below_floor part_least \
        'how == HOW_MAJORITY' 'how == HOW_MAJORITY || how == HOW_REPAIR'
    # a version that is told before the disks of a majority have it
    row told_unsynced consistent_note 'said[3] != 0' false
    # a majority of those who promised, in place of the owners
    row majority_of_few consistent_judge \
        'op->phase == PHASE_WRITE && enough' \
        'op->phase == PHASE_WRITE &&
        bits_count(oks) > bits_count(op->promised) / 2'

    # From here on it takes changes of the ring, or late answers: see run().
    # in the joint epoch the old majority alone
    row change_old_majority op_majority \
        'op->groups[i] != 0' 'op->groups[i] != 0 && i == GROUP_OLD'
    # requests by an older ring are taken
    row change_epoch_unchecked peer_check \
        'x[2] < view->epoch' \
        '(op->epoch = x[2] < view->epoch ? view->epoch : x[2]) == 0'
    # an owner answers by its ring, though the asker has a later one
    row change_not_adopted peer_check \
        'x[2] > view->epoch' \
        'x[2] > view->epoch && (op->epoch = view->epoch) == 0'
    # answers to an attempt by another ring are added
    row change_answers_added link_answer \
        'op->attempt == call.attempt' 'op->attempt >= call.attempt'
    # a record that was refused is taken for one that is held
    row change_refused_held repair_store \
        'verdict = ACCEPT_FLOOR' \
        'verdict = repair->joins ? ACCEPT_HELD : ACCEPT_FLOOR'
    # an owner that is to leave drops what it has at once
    row change_drops repair_all \
        'view_owns(view, i, number) == 0' \
        'view_owns(view, i, number) == 0 || (view->next != NULL &&
        view_owns(view, i, number) == OWNS_OLD &&
        part->log.end != LOG_HEADER &&
        part_restart(node, part, view->epoch, true))'
    # what an owner was and is again has from before, it keeps
    row change_kept parts_clear \
        '(of == OWNS_NEW && view->epoch != now->epoch)' false
    # a new owner takes no tombstones that are old
    row change_old_deletes repair_cutoff \
        'repair->joins || repair->floor > 0' 'repair->floor > 0'
    # a report that outlives a loss of power, and is believed: that alone would
    # do no harm, as a new owner recovers like any other
    row change_report_stays record_text \
        'atomic_load(&node->report)' \
        'node->view == NULL || node->view->me == node->view->count ||
        atomic_load(&node->report) != 0 ? atomic_load(&node->report) :
        (unsigned long long)node->view->member[node->view->me].report'
    also store_begin \
        'node->unclean || part->recovering' \
        '(node->unclean && (view->next == NULL ||
        view->member[view->me].report != view->epoch)) || part->recovering'
}

HISTORIES=${HISTORIES:-100000} # at most: some are found after 5000 only
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

# Plants an expression in a function, with the number of the error.
plant() {
    PLANT=$number PLANT_IN=$1 PLANT_OLD=$2 PLANT_NEW=$3 awk '
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
        { miss "$name" "'$2' is not once in $1()"; return 0; }
    mv "$copy.next" "$copy"
}

# A second expression of the same error.
also() {
    plant "$@"
}

# An error gets the number that is next, and stands beside those before it.
row() {
    number=$((number + 1))
    name=$1
    plant "$2" "$3" "$4"
    case $wanted in
    "  " | *" $1 "*) ;;
    *) return 0 ;;
    esac
    names="$names $1=$number"
}

# Runs the simulation with the plant of that number in force.
run() {
    code=0
    [ "$1" != told_unsynced ] || export DARK=1 # it takes a loss of power
    case $1 in
    change_*) export CHANGES=1 POINTED=1 ;;
    repair_below_floor) export MISSED=1 ;; # and it much repair
    esac
    case $1 in # and these that answers come late
    change_answers_added | repair_below_floor) export LAGS=1 ;;
    esac
    case $1 in # and these such an owner
    change_epoch_unchecked | change_refused_held) export STALE=1 ;;
    change_kept | change_old_deletes) export AWAY=1 ;;
    esac
    PLANT=$2 "$out/sim" >"$out/$1.log" 2>&1 || code=$?
    echo "$code" >"$out/$1.code"
}

# What became of it: sim.c says first what was violated, and last after how
# many histories.
judge() {
    said=$(sed -n 2p "$out/$1.log")
    case $(cat "$out/$1.code"):$said:$1 in
    1:key\ [0-9]*": "* | 1:the\ replicas\ of\ partition\ *) ;;
    1:value\ [0-9]*" has another etag"*:change_answers_added) ;;
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
for name; do
    case " $names " in *" $name="*) ;; *) miss "$name" "no such row" ;; esac
done
[ $failed = 0 ] || exit 1 # the table is stale: nothing would be shown
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
