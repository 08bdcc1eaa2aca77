#!/bin/sh
# drills.sh [NAME ...] - what operators fear, done to real nodes and looked at.
#
# Each drill is a function below: it says what it does and what should happen,
# does it, looks at it with curl and -dump, and ends with PASS, FAIL or SKIP and
# the reason. Without a name all are run; the exit code is 1 if one failed.
#
# A drill has a directory and loopback addresses of its own (127.X.Y.N is node
# N), takes at most three minutes, and leaves no process and no file. None
# needs root; `cut` and `full` make namespaces, where the kernel lets them.
# KEEP=1 keeps the directories of those that fail, with the nodes' logs.
#
# Lists are words here, and a loop in the background counts for itself.
# shellcheck disable=SC2013,SC2015,SC2030,SC2031,SC2046,SC2086,SC2116
set -u
cd "$(dirname "$0")/.." || exit 1
PATH=$PATH:/usr/sbin:/sbin
all="kill9 counter pause torn flipped foreign synced full deleted etcd_stopped
     etcd_wiped join leave replace two_names clock cut"
keys=40 # k1 to k40, whose value is the round in which they were written

# Proxies and the user's .curlrc are not for us.
no_proxy='*' ETCDCTL_API=3
export no_proxy ETCDCTL_API
curl() { command curl -q -sS -m 10 "$@" 2>>"$dir/curl.log"; }

# ---------------------------------------------------------------------------
# What a drill says
# ---------------------------------------------------------------------------

does() { printf '== %s\n   does    %s\n' "$drill" "$*"; }
should() { printf '   should  %s\n' "$*"; }
note() { printf '   saw     %s\n' "$*"; }

fail() {
    printf 'FAIL  %s: %s\n' "$drill" "$*"
    exit 1
}

skip() {
    printf 'SKIP  %s: %s\n' "$drill" "$*"
    exit 77
}

# none WHAT TEXT: fails if there is any text, which begins with its examples.
none() {
    [ -z "$2" ] || fail "$1:" $(printf '%s\n' "$2" | head -n 5 | tr '\n' ';')
}

# rest SECONDS: lets time pass, where that is what the drill is about.
rest() {
    sleep "$1"
}

# within SECONDS WHAT COMMAND...: tries until the command succeeds.
within() {
    limit=$(($(date +%s) + $1)) what="$2 after $1 s"
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$(date +%s)" -lt $limit ] || fail "not $what"
        rest 0.2
    done
}

# empty COMMAND...: does it print nothing?
empty() { [ -z "$("$@")" ]; }

# ---------------------------------------------------------------------------
# Nodes and etcd. n1 has the directory n1, the log n1.log, its pid in n1.pid.
# ---------------------------------------------------------------------------

address() { echo "$net.$1"; }
api() { echo "http://$(address "$1"):18000"; }
peer() { echo "http://$(address "$1"):19000"; }
pid() { cat "$dir/n$1.pid"; }
runs() { kill -0 "$(pid "$1")" 2>/dev/null; }
said() { grep -q "$2" "$dir/n$1.log"; }

# begin NAME COMMAND...: in the background, with a log and a pid of that name.
begin() {
    name=$1
    shift
    : >"$dir/$name.log"
    "$@" </dev/null >"$dir/$name.log" 2>&1 &
    echo $! >"$dir/$name.pid"
}

# start N [FLAG...]: $before may put a command before the node's.
before='' inside=''
start() {
    n=$1
    shift
    begin "n$n" $before ${inside:+$inside$n} ./estoraje -name "n$n" -host "$(address "$n")" \
        -port 18000 -peerPort 19000 -dataPath "$dir/n$n" -partitions 64 \
        $flags "$@"
}

is_ready() { said "$1" '^ready ' && curl -f -o /dev/null "$(api "$1")/_ready"; }

# ready N...
ready() {
    for n in "$@"; do
        limit=$(($(date +%s) + 60))
        until is_ready "$n"; do
            runs "$n" || fail "n$n ended: $(tail -n 1 "$dir/n$n.log")"
            [ "$(date +%s)" -lt $limit ] || fail "n$n is not ready after 60 s"
            rest 0.2
        done
    done
}

# kill_9 N...: its guardian and etcd must go by themselves.
kill_9() {
    for n in "$@"; do
        kill -9 "$(pid "$n")"
        wait "$(pid "$n")" 2>/dev/null
        unfake "$(pid "$n")"
        within 10 "all of n$n's processes gone" empty processes "/n$n"
    done
}

# processes PATH: our nodes and etcds that name this path of our directory.
processes() {
    for p in $(grep -lsF "$dir$1" /proc/[0-9]*/cmdline); do
        p=${p%/cmdline}
        case $(tr '\0' ' ' 2>/dev/null <"$p/cmdline") in
        ./estoraje* | etcd* | */etcd*) echo "${p#/proc/}" ;;
        esac
    done
}

# The etcds that nodes keep beside them.
etcds() {
    for p in $(processes /n); do
        case $(tr '\0' ' ' 2>/dev/null <"/proc/$p/cmdline") in
        *etcd\ *) echo "$p" ;;
        esac
    done
}

# Three nodes, each with an etcd of its own.
trio() {
    flags="-initialCluster n1=http://$(address 1):12380"
    flags=$flags,n2=http://$(address 2):12380,n3=http://$(address 3):12380
    start 1
    start 2
    start 3
    ready 1 2 3
}

# One etcd, and three nodes that use it; n1 founds, the others join.
etcd_start() {
    me=$(address 9)
    begin etcd etcd --data-dir "$dir/etcd" --initial-cluster \
        "default=http://$me:12380" \
        --listen-client-urls "http://$me:12379" \
        --advertise-client-urls "http://$me:12379" \
        --listen-peer-urls "http://$me:12380" \
        --initial-advertise-peer-urls "http://$me:12380"
    flags="-etcd http://$me:12379"
    within 30 "etcd answers" curl -f "http://$me:12379/version"
}
shared_trio() {
    etcd_start
    start 1
    ready 1
    start 2 -add
    start 3 -add
    ready 2 3
    within 60 "two changes of the ring done" status_has 1 '"epoch":5,'
}

# status_has N PATTERN: /_cluster_status, with a line for each node.
status() { curl "$(api "$1")/_cluster_status" | sed 's/{"name"/\n&/g'; }
status_has() { status "$1" | grep -q "$2"; }

# ---------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------

# put_all ROUND N: by way of node N. Prints those that were not acknowledged,
# "ROUND CODE KEY", and keeps all that were.
put_all() {
    curl -X PUT -d "$1" -o /dev/null -w "$1 %{http_code} %{url_effective}\n" \
        "$(api "$2")/k[1-$keys]" | sed 's,http:.*/,,' |
        tee -a "$dir/writes" | grep -v '^[0-9]* 20[14] '
}

# read_all N: "VALUE CODE KEY" of each key.
read_all() {
    curl -w ' %{http_code} %{url_effective}\n' "$(api "$1")/k[1-$keys]" |
        sed -e '/^--_curl_--/d' -e 's,http:.*/,,'
}

# get_all ROUND N: prints those whose value is another, or not to be had.
get_all() { read_all "$2" | grep -v "^$1 200 "; }

# lost N: prints those that are older than what was acknowledged.
lost() {
    read_all "$1" >"$dir/reads"
    awk 'NR == FNR { if ($2 ~ /20[14]/ && $1 > acked[$3]) acked[$3] = $1; next }
         $2 != 200 || $1 < acked[$3] { print $0, "instead of", acked[$3] }
         { seen[$3] = 1 }
         END { for (key in acked) if (!seen[key]) print key, "not read" }' \
        "$dir/writes" "$dir/reads"
}

# state N: the newest record of each key on the disk of a node.
state() {
    for log in "$dir/n$1"/[0-9]*.log; do
        ./estoraje -dump "$log"
    done | awk -F '\t' '
        $2 == "ok" && $3 "" > newest[$6] "" { newest[$6] = $3; type[$6] = $5 }
        END { for (key in newest) print key, newest[key], type[key] }' | sort
}

# same N N: have the two the same on their disks?
same() { [ "$(state "$1")" = "$(state "$2")" ]; }
equal() {
    within 60 "n1 and n2 equal, by their logs," same 1 2
    within 60 "n1 and n3 equal, by their logs," same 1 3
}

# copies N...: what is not on three of these nodes' disks, in one version.
copies() {
    for n in "$@"; do
        state "$n"
    done | sort | uniq -c | grep -v '^ *3 '
}

# fill N, filled N: values that no load writes over; those that are not read.
fill() {
    curl -X PUT -d old -o /dev/null -w '%{http_code}\n' \
        "$(api "$1")/old[1-400]" | grep -v '^20[14]'
}
filled() {
    curl -w ' %{http_code} %{url_effective}\n' "$(api "$1")/old[1-400]" |
        sed '/^--_curl_--/d' | grep -v '^old 200 '
}

# load N...: in the background, round after round: all keys are written by way
# of one node, and read by way of another. What is not as it should is kept.
load() {
    rm -f "$dir/stop"
    for other in "$@"; do :; done
    while [ ! -e "$dir/stop" ]; do
        for n in "$@"; do
            round=$((round + 1))
            put_all $round "$n"
            get_all $round "$other"
            other=$n
            echo $round >"$dir/round"
        done
    done >>"$dir/bad" &
    echo $! >"$dir/load.pid"
}

# load_end: no request may have failed, no value have been wrong.
load_end() {
    : >"$dir/stop"
    wait "$(cat "$dir/load.pid")"
    rm -f "$dir/load.pid"
    none "refused, or not what was written just before" "$(cat "$dir/bad")"
    note "$((($(cat "$dir/round") - round) * keys * 2)) requests, all answered right"
    round=$(cat "$dir/round")
}

# ---------------------------------------------------------------------------
# The drills
# ---------------------------------------------------------------------------

kill9() {
    does "kill -9 of each of three nodes in turn, while all keys are written" \
        "again and again"
    should "every acknowledged value is read on all nodes; a killed node's" \
        "etcd goes with it; the node comes back by itself"
    trio
    while [ ! -e "$dir/stop" ]; do
        for n in 1 2 3; do
            put_all $((round += 1)) $n
        done
    done >"$dir/refused" &
    echo $! >"$dir/load.pid"
    for n in 1 2 3 1; do
        rest 2
        kill_9 $n
        rest 1
        start $n
        ready $n
    done
    : >"$dir/stop"
    wait "$(cat "$dir/load.pid")"
    note "$(grep -c ' 20[14] ' "$dir/writes") writes acknowledged," \
        "$(wc -l <"$dir/refused") not"
    for n in 1 2 3; do
        within 30 "n$n ready" is_ready $n
        none "older than acknowledged on n$n" "$(lost $n)"
    done
    equal
}

pause() {
    does "SIGSTOP of a node until its lease in etcd has lapsed, under load on" \
        "the others; and SIGCONT"
    should "no request of theirs fails, the ring stays as it is, and the node" \
        "reads nothing stale, from the first request on"
    trio
    none "not written" "$(put_all 1 3)"
    epoch=$(status 1 | grep -o '"epoch":[0-9]*')
    load 1 2
    kill -STOP "$(pid 3)"
    within 30 "n3's lease lapsed" empty alive_in_etcd 3
    status_has 1 '"n3".*"alive":false' || fail "n3 does not count as dead"
    load_end
    kill -CONT "$(pid 3)"
    none "stale on n3" "$(get_all "$round" 3)"
    status_has 1 "$epoch," || fail "the ring is another"
    within 30 "n3's lease there again" alive_in_etcd 3
    round=$((round + 1))
    none "not written by n3" "$(put_all $round 3)"
    none "wrong on n1" "$(get_all "$round" 1)"
    within 30 "n3 alive to the others" status_has 1 '"n3".*"Ready".*"alive":true'
    equal
}

# alive_in_etcd N: prints the sign of life that is leased.
alive_in_etcd() {
    etcdctl --endpoints "http://$(address 1):12379" get "strj_alive_n$1" |
        grep .
}

counter() {
    does "three clients count in one key, each at a node of its own, by GET" \
        "?consistent and PUT If-Match, while nodes are killed with -9 in turn"
    should "no number is given twice, and in the end it is the number of those" \
        "that were acknowledged, or up to as many more as were in doubt"
    trio
    curl -X PUT -d 0 -o /dev/null "$(api 1)/counter"
    clients=
    for n in 1 2 3; do
        while [ ! -e "$dir/stop" ]; do
            count $n
        done &
        clients="$clients $!"
        echo $! >"$dir/count$n.pid"
    done
    for n in 3 1 2; do
        rest 2
        kill_9 $n
        rest 1
        start $n
        ready $n
    done
    rest 1
    : >"$dir/stop"
    wait $clients
    rm -f "$dir"/count?.pid
    good=$(wc -l <"$dir/counted") doubt=$(wc -l <"$dir/doubted")
    for n in 1 2 3; do
        within 30 "the counter read on n$n" read_counter $n
        value=$(read_counter $n)
        note "n$n has $value: $good acknowledged, $doubt in doubt"
        [ "$good" -ge 50 ] || fail "that is hardly a test"
        [ "$value" -ge "$good" ] && [ "$value" -le $((good + doubt)) ] ||
            fail "that is another number"
    done
    none "given twice" "$(sort "$dir/counted" | uniq -d)"
}
read_counter() { curl -f "$(api "$1")/counter?consistent"; }

# count N: one more, at node N. 412: another client was quicker.
count() {
    curl -D "$dir/head$1" "$(api "$1")/counter?consistent" >"$dir/body$1" ||
        return
    etag=$(tr -d '\r' <"$dir/head$1" | sed -n 's/^ETag: //p')
    [ -n "$etag" ] || return
    next=$(($(cat "$dir/body$1") + 1))
    case $(curl -X PUT -H "If-Match: $etag" -d $next -o /dev/null \
        -w '%{http_code}' "$(api "$1")/counter") in
    204) echo $next >>"$dir/counted" ;;
    412 | 503) ;;
    *) echo $next >>"$dir/doubted" ;;
    esac
}

torn() {
    does "kill -9 of a node; the last 7 bytes of each of its logs are cut off"
    should "its start cuts off the torn records and says so; all values are" \
        "read there, and are on its disk again, brought by the others"
    trio
    none "not written" "$(put_all 1 1; put_all 2 2)"
    equal
    kill_9 3
    state 3 >"$dir/before"
    for log in "$dir"/n3/[0-9]*.log; do
        [ "$(wc -c <"$log")" -le 64 ] || truncate -s -7 "$log"
    done
    torn=$(state 3 | diff - "$dir/before" | grep -c '^>')
    note "$torn records torn"
    [ "$torn" -gt 0 ] || fail "nothing was torn"
    start 3
    ready 3
    said 3 'torn tail' || fail "its log says nothing of a torn tail"
    none "wrong on n3" "$(get_all 2 3)"
    equal
    kill_9 1 2
    within 30 "all values read from n3 alone" empty get_all 2 3
}

flipped() {
    does "one byte of a value is flipped in a log under a running node, and" \
        "one of a record's head while it is down"
    should "both values are read right there, are healed from the others," \
        "and -check finds nothing in the end"
    trio
    curl -X PUT -d 'a quick brown fox' -o /dev/null "$(api 1)/fox"
    curl -X PUT -d 'a lazy dog' -o /dev/null "$(api 1)/sleeper"
    # What is rotten at the end of a log might be torn: more goes behind it.
    curl -X PUT -d more -o /dev/null "$(api 1)/more[1-800]"
    equal
    flip 2 'quick brown'
    ./estoraje -check "$dir/n2" >/dev/null && fail "-check sees no damage"
    [ "$(curl "$(api 2)/fox")" = 'a quick brown fox' ] || fail "wrong value"
    said 2 damage || fail "the log says nothing of damage"
    kill_9 2
    flip 2 sleeper
    start 2
    ready 2
    [ "$(curl "$(api 2)/sleeper")" = 'a lazy dog' ] || fail "wrong value"
    [ "$(curl "$(api 2)/fox")" = 'a quick brown fox' ] || fail "wrong value"
    equal
    within 60 "clean, by -check," ./estoraje -check "$dir/n2"
}

# flip N TEXT: in the one log of the node that has the text, its first byte.
flip() {
    log=$(grep -l "$2" "$dir/n$1"/[0-9]*.log) || fail "no log has '$2'"
    at=$(grep -abo "$2" "$log" | head -n 1)
    printf '#' | dd of="$log" bs=1 seek="${at%%:*}" conv=notrunc 2>/dev/null
    note "byte ${at%%:*} of ${log#"$dir/"} flipped"
}

foreign() {
    does "a node's log is replaced by that of another cluster, then by one of" \
        "another partition, then taken away"
    should "each time the start is refused with a line that names the log, which" \
        "is left as it is; with its own log the node has everything"
    flags='' log=$dir/n1/007.log
    start 1
    start 2
    ready 1 2
    none "not written" "$(fill 1; fill 2)"
    for n in 1 2; do
        kill "$(pid $n)"
        wait "$(pid $n)"
    done
    mv "$log" "$dir/own"
    for other in "$dir/n2/007.log" "$dir/n1/008.log" ''; do
        [ -z "$other" ] || cp "$other" "$log"
        start 1
        wait "$(pid 1)"
        code=$?
        [ $code = 1 ] || fail "it ends with $code"
        line=$(tail -n 1 "$dir/n1.log")
        note "exit $code: $line"
        case $line in
        *007.log*) ;;
        *) fail "the line does not name the log" ;;
        esac
        [ -z "$other" ] || cmp "$other" "$log" || fail "the log is another now"
        rm -f "$log"
    done
    mv "$dir/own" "$log"
    start 1
    ready 1
    none "not read" "$(filled 1)"
}

synced() {
    does "a node with -sync always is traced while values are written one by" \
        "one; then its disk's syncs fail (strace)"
    should "each write has a sync of its own before its answer; what could not" \
        "be synced is not acknowledged, and /_ready says so; what was is there" \
        "after a restart"
    command -v strace >/dev/null || skip "no strace"
    flags='-sync always'
    before="strace -D -f -o $dir/trace -e trace=fdatasync,fsync"
    start 1
    ready 1
    before=
    was=$(grep -c 'sync.* = 0' "$dir/trace")
    none "not written" "$(put_all 1 1)"
    syncs=$(($(grep -c 'sync.* = 0' "$dir/trace") - was))
    note "$syncs syncs for $keys writes"
    [ $syncs -ge $keys ] || fail "writes are acknowledged unsynced"
    kill_9 1
    before="strace -D -f -o $dir/trace -e trace=fdatasync"
    before="$before -e inject=fdatasync:error=EIO"
    start 1
    ready 1
    before=
    put_all 2 1 >"$dir/failed"
    [ "$(wc -l <"$dir/failed")" = $keys ] || fail "a write is acknowledged"
    note "$(curl -X PUT -d 2 "$(api 1)/k1")"
    grep_ready 1 degraded || fail "/_ready does not say so"
    kill_9 1
    start 1
    ready 1
    none "lost" "$(lost 1)"
}

deleted() {
    does "all values are deleted while a node is away; it comes back, and then" \
        "once more with its directory as it was before"
    should "they stay deleted, on all nodes"
    shared_trio
    none "not written" "$(fill 1; put_all 1 2)"
    equal
    kill_9 3
    cp -a "$dir/n3" "$dir/copy"
    curl -X DELETE -o /dev/null -w '%{http_code}\n' "$(api 1)/old[1-400]" |
        grep -v 204 >"$dir/bad"
    none "not deleted" "$(cat "$dir/bad")"
    start 3
    ready 3
    rest 2
    none "back" "$(undead)"
    equal
    kill_9 3
    rm -rf "$dir/n3"
    mv "$dir/copy" "$dir/n3"
    start 3
    ready 3
    said 3 'older copy' || fail "its log says nothing of an older copy"
    rest 2
    none "back" "$(undead)"
    equal
    none "lost" "$(get_all 1 3)"
}

# Deleted keys that are not 404 everywhere.
undead() {
    for n in 1 2 3; do
        curl -o /dev/null -w '%{http_code} %{url_effective}\n' \
            "$(api $n)/old[1-400]" | grep -v '^404 '
    done
}

full() {
    if [ -n "$NAMESPACE" ]; then
        room="a disk of 8 MiB each"
        for n in 1 2 3; do
            mkdir "$dir/n$n"
            mount -t tmpfs -o size=8m none "$dir/n$n" || skip "no tmpfs"
        done
    else
        room="logs of 512 KiB at most (ulimit -f; no disk can be mounted)"
        before="sh -c ulimit\${IFS}-f\${IFS}1024;exec\${IFS}\"\$@\" sh"
    fi
    does "three nodes with $room are filled until they refuse"
    should "507 for what does not fit, nothing that was taken is lost, deletes" \
        "work, and writes are taken again once there is room"
    shared_trio
    none "not written" "$(put_all 1 1)"
    head -c 150000 /dev/urandom >"$dir/big"
    refused=0 n=0
    while [ $refused -lt 3 ]; do
        [ $((n += 1)) -le 300 ] || fail "300 values of 150 kB were taken"
        code=$(big PUT $n -T "$dir/big" -o /dev/null)
        case $code in
        201) echo $n >>"$dir/taken" ;;
        507) refused=$((refused + 1)) ;;
        504) ;; # some had room for it: nothing is promised of this one
        *) fail "a write is answered $code" ;;
        esac
    done
    note "$(wc -l <"$dir/taken") values of 150 kB taken"
    [ -z "$NAMESPACE" ] || within 30 "said by /_ready" grep_ready 1 degraded
    for n in $(cat "$dir/taken"); do
        [ "$(big GET "$n" -o "$dir/got")" = 200 ] && cmp -s "$dir/big" "$dir/got" ||
            fail "value $n, which was taken, is not read"
    done
    for n in 1 2 3; do
        none "lost on n$n" "$(get_all 1 $n)"
    done
    for n in $(cat "$dir/taken"); do
        code=$(big DELETE "$n")
        [ "$code" = 204 ] || fail "a delete is answered $code"
    done
    within 90 "all kinds of writes taken again" empty put_all 2 2
    within 90 "large values taken again" large_taken
    none "wrong on n3" "$(get_all 2 3)"
    equal
}
grep_ready() { curl "$(api "$1")/_ready" | grep -q "$2"; }
large_taken() { big PUT 1 -T "$dir/big" | grep -q '^20'; }

# big METHOD KEY ...: the status.
big() {
    method=$1 key=$2
    shift 2
    curl -X "$method" -w '%{http_code}' "$@" "$(api 1)/big/$key"
}

etcd_stopped() {
    does "SIGSTOP of all etcds for 10 s, past the leases; then kill -9 of all," \
        "under load"
    should "no request fails; /_ready says degraded; all is well afterwards"
    trio
    load 1 2 3
    stopped=$(etcds)
    [ "$(echo "$stopped" | wc -l)" = 3 ] || fail "no three etcds: $stopped"
    kill -STOP $stopped
    within 30 "degraded, by /_ready," grep_ready 1 'degraded.*etcd'
    rest 10
    kill -CONT $stopped
    healthy 'as before SIGSTOP'
    kill -9 $stopped
    within 60 "all etcds begun again" three_etcds "$stopped"
    healthy 'as before kill -9'
    load_end
    for n in 1 2 3; do
        none "wrong on n$n" "$(get_all "$round" $n)"
    done
}
three_etcds() { [ "$(etcds | grep -vxcF "$1")" = 3 ]; }
no_trouble() { ! grep_ready "$1" degraded && grep_ready "$1" ready; }
healthy() {
    for n in 1 2 3; do
        within 60 "n$n $1" no_trouble $n
        within 60 "n$n $1, to n1," status_has 1 "\"n$n\".*\"Ready\".*\"alive\":true"
    done
}

etcd_wiped() {
    does "etcd is killed and comes back with nothing, under load; then the" \
        "ring is given back, and a node joins"
    should "no request fails, the log says what to do, changes work again"
    shared_trio
    load 1 2 3
    etcd=$(cat "$dir/etcd.pid")
    kill -9 "$etcd"
    wait "$etcd" 2>/dev/null
    rm -rf "$dir/etcd"
    etcd_start
    for n in 1 2 3; do
        within 30 "said by n$n" said $n 'etcdctl put strj_ring'
    done
    note "$(grep -o 'etcd.*etcdctl put strj_ring' "$dir/n1.log" | head -n 1)"
    head -n 1 "$dir/n1/ring" |
        etcdctl --endpoints "http://$(address 9):12379" put strj_ring \
            >"$dir/etcdctl.log" 2>&1 || fail "$(cat "$dir/etcdctl.log")"
    healthy 'as before'
    start 4 -add
    ready 4
    within 60 "two changes of the ring done" status_has 1 '"epoch":7,'
    load_end
    none "wrong on n4" "$(get_all "$round" 4)"
}

join() {
    does "a fourth node joins three, under load"
    should "no request fails or reads an old value; all are right on the new" \
        "node, which owns its share"
    shared_trio
    none "not written" "$(fill 1)"
    load 1 2 3
    rest 1
    start 4 -add
    ready 4
    within 60 "two changes of the ring done" status_has 1 '"epoch":7,'
    within 60 "nothing moving" status_has 4 '"epoch":7,.*"moving":0,'
    rest 1
    load_end
    none "wrong on n4" "$(get_all "$round" 4; filled 4)"
    share=$(status 1 | sed -n 's/.*"n4".*"partitions":\([0-9]*\).*/\1/p')
    note "n4 owns ${share:-none} of 64 partitions, as one of three owners"
    [ "${share:-0}" -ge 40 ] && [ "$share" -le 51 ] ||
        fail "that is not its share"
    round=$((round + 1))
    none "not written by n4" "$(put_all $round 4)"
    none "wrong on n1" "$(get_all "$round" 1)"
    within 60 "each value on three disks, and on no fourth," \
        empty copies 1 2 3 4
    kill_9 1
    rest 2
    none "not read from the others" "$(get_all "$round" 4; filled 4)"
}

leave() {
    does "one of four nodes, whose disk is slow (strace), is told to leave by" \
        "way of another, under load"
    should "no request fails on the others, nor on it until it says that it has" \
        "left; its log says that it may be stopped; another cannot leave," \
        "since three replicas need three nodes"
    shared_trio
    # It learns last that it has left, in the middle of requests.
    command -v strace >/dev/null &&
        before="strace -D -f -o /dev/null -e inject=fsync:delay_enter=100000"
    start 4 -add
    before=
    ready 4
    within 60 "two changes of the ring done" status_has 1 '"epoch":7,'
    none "not written" "$(fill 1)"
    load 1 2 3
    while [ ! -e "$dir/left" ]; do
        curl -X PUT -d x -w '%{http_code}\n' "$(api 4)/leaver[1-20]"
    done | sed -e '/^--_curl_--/d' -e '/has left the cluster/{N;d;}' |
        grep -v '^20[14]$' >"$dir/leaver" &
    echo $! >"$dir/leaver.pid"
    rest 1
    [ "$(delete 1 n4)" = 202 ] || fail "DELETE is not answered 202"
    within 60 "told to be stopped" said 4 'may be stopped'
    rest 1
    : >"$dir/left"
    wait "$(cat "$dir/leaver.pid")"
    rm -f "$dir/leaver.pid"
    none "refused by n4" "$(cat "$dir/leaver")"
    kill "$(pid 4)"
    wait "$(pid 4)" || fail "n4 ends with $?"
    within 30 "two changes of the ring done" status_has 1 '"epoch":9,'
    status_has 1 '"n4"' && fail "n4 is still in the status"
    rest 1
    load_end
    for n in 1 2 3; do
        none "wrong on n$n" "$(get_all "$round" $n; filled $n)"
    done
    [ "$(delete 1 n3)" = 409 ] || fail "a third node may leave"
    equal
}
delete() {
    curl -X DELETE -w '%{http_code}' -o /dev/null \
        "$(peer "$1")/_nodes/delete/$2"
}

replace() {
    does "kill -9 of a node; its directory is lost; it is started again under" \
        "its old name with -add, under load on the others"
    should "no request fails; it has everything, and can answer alone"
    shared_trio
    none "not written" "$(fill 1)"
    kill_9 3
    unmark
    rm -rf "$dir/n3"
    rest 3 # what was in flight to it is no failure
    load 1 2
    start 3 -add
    ready 3
    within 90 "a member again" status_has 1 '"n3".*"Ready".*"alive":true'
    within 60 "nothing moving" status_has 1 '"moving":0,'
    load_end
    none "wrong on n3" "$(get_all "$round" 3; filled 3)"
    equal
    kill_9 1 2
    within 30 "all values read from n3 alone" empty get_all "$round" 3
    none "not read from n3 alone" "$(filled 3)"
}

two_names() {
    does "a second process with the name of a live node, with a directory of" \
        "its own; and one with the directory of a live node"
    should "each exits 1 with a clear line; the first goes on unharmed"
    shared_trio
    load 1 2 3
    second "$dir/other" 5 live
    second "$dir/n3" 5 'in use'
    load_end
    runs 3 || fail "n3 has ended"
    healthy 'as before'
}

# second DIR N WORD: n3 once more, on the address of N.
second() {
    timeout 60 ./estoraje -name n3 -host "$(address "$2")" -port 18000 \
        -peerPort 19000 -dataPath "$1" -partitions 64 $flags -add \
        </dev/null >"$dir/second.log" 2>&1
    code=$?
    line=$(tail -n 1 "$dir/second.log")
    note "exit $code: $line"
    [ $code = 1 ] || fail "it ends with $code"
    case $line in
    *"$3"*) ;;
    *) fail "the line does not say '$3'" ;;
    esac
}

clock() {
    does "a node is started with its clock an hour ahead (libfaketime)"
    should "it refuses writes, which would bury the others'; the others go on" \
        "and their writes count; all values are right on it"
    library=$(find /usr/lib* -name libfaketimeMT.so.1 2>/dev/null | head -n 1)
    [ -n "$library" ] || skip "no libfaketimeMT.so.1"
    trio
    none "not written" "$(put_all 1 3)"
    kill "$(pid 3)"
    wait "$(pid 3)"
    before="env LD_PRELOAD=$library FAKETIME=+3600 FAKETIME_DONT_FAKE_MONOTONIC=1"
    start 3
    ready 3
    before=
    hour=$(date -u -d '+1 hour' +%Y-%m-%dT%H)
    said 3 "^$hour" || fail "its clock is not an hour ahead"
    within 30 "its clock called wrong by /_ready" grep_ready 3 'degraded.*clock'
    [ "$(put_all 2 3 | grep -c '^2 503 ')" = $keys ] || fail "it takes writes"
    note "$(curl -X PUT -d 2 "$(api 3)/k1")"
    for n in 1 2 3; do
        none "not as before on n$n" "$(get_all 1 $n)"
    done
    none "not written by the others" "$(put_all 3 1)"
    for n in 1 2 3; do
        none "not the others' on n$n" "$(get_all 3 $n)"
    done
    kill_9 3
    start 3
    ready 3
    within 30 "all writes taken once its clock is right" empty put_all 4 3
    none "wrong on n1" "$(get_all 4 1)"
    equal
}

cut() {
    does "the network is cut between n1 and n3, which both reach n2; then" \
        "between n3 and all"
    should "2 s later n3 reads nothing stale; when it is alone it says that" \
        "its values may be, or 503, and 404 never"
    [ -n "$NAMESPACE" ] ||
        skip "no network namespaces here (root, or user namespaces, wanted)"
    network
    inside='nsenter --net=/run/netns/n'
    trio
    none "not written" "$(put_all 1 3)"
    between replace lladdr 02:00:00:00:00:99 nud permanent
    none "not written by n1" "$(put_all 2 1)"
    rest 2
    none "stale on n3" "$(get_all 2 3)"
    for round in 3 4 5; do
        none "not written by n1" "$(put_all $round 1)"
        none "stale on n3" "$(get_all $round 3)"
        none "not written by n3" "$(put_all ${round}0 3)"
        none "stale on n1" "$(get_all ${round}0 1)"
    done
    ip link set link3 down
    rest 2
    none "not written by n1" "$(put_all 6 1)"
    for key in k1 k2 k3; do
        answer=$(nsenter --net=/run/netns/n3 curl -q -s -m 10 -i "$(api 3)/$key")
        case $answer in
        *" 503 "* | *" 200 "*[Ss]tale:*) ;;
        *) fail "n3 alone answers: $answer" ;;
        esac
    done
    note "n3 alone answers:" $(echo "$answer" | tr -d '\r' | grep -i 'HTTP\|stale')
    ip link set link3 up
    between del
    within 60 "all read on n3 again" empty get_all 6 3
    equal
}

# Three namespaces on one bridge, where we are as well.
network() {
    net=10.99.99
    mount -t tmpfs none /run && ip link set lo up &&
        ip link add bridge type bridge && ip link set bridge up &&
        ip addr add "$(address 9)/24" dev bridge || skip "no bridge"
    for n in 1 2 3; do
        ip netns add n$n &&
            ip link add link$n type veth peer name eth0 netns n$n &&
            ip link set link$n master bridge up &&
            ip -n n$n addr add "$(address $n)/24" dev eth0 &&
            ip -n n$n link set eth0 up && ip -n n$n link set lo up ||
            skip "no network between namespaces"
    done
}

# between replace|del ...: what n1 and n3 believe of each other's address. With
# a wrong one their packets go nowhere, and nobody is told.
between() {
    what=$1
    shift
    ip -n n1 neigh "$what" "$(address 3)" dev eth0 "$@"
    ip -n n3 neigh "$what" "$(address 1)" dev eth0 "$@"
}

# ---------------------------------------------------------------------------
# Running them
# ---------------------------------------------------------------------------

# Nodes leave a mark of their last end in shared memory, under their ids.
unmark() {
    for id in $(sed 's/"id":"/\n&/g' "$dir"/n[0-9]/ring 2>/dev/null |
        sed -n 's/^"id":"\([0-9a-f]*\)".*/\1/p' | sort -u); do
        rm -f "/dev/shm/estoraje-$id"-*
    done
}

# What libfaketime leaves of a process that is killed.
unfake() { rm -f "/dev/shm/faketime_shm_$1" "/dev/shm/sem.faketime_sem_$1"; }

# Ends what the drill began; a drill that passed fails if any is left then.
clean() {
    code=$?
    trap '' INT TERM HUP
    : >"$dir/stop"
    for file in "$dir"/*.pid; do
        [ -e "$file" ] || continue
        p=$(cat "$file")
        kill -9 "$p" 2>/dev/null
        wait "$p" 2>/dev/null
        unfake "$p"
    done
    limit=$(($(date +%s) + 10))
    while left=$(processes /) && [ -n "$left" ] &&
        [ "$(date +%s)" -lt $limit ]; do
        rest 0.2
    done
    unmark
    [ -z "$NAMESPACE" ] || umount "$dir"/n[0-9] 2>/dev/null
    if [ -n "$left" ]; then
        kill -9 $left
        printf 'FAIL  %s: processes were left: %s\n' "$drill" "$(echo $left)"
        code=1
    fi
    if [ $code = 1 ] && [ -n "${KEEP-}" ]; then
        echo "      kept: $dir"
    else
        rm -rf "$dir"
    fi
    exit $code
}

# one NAME: in a process of its own.
one() {
    drill=$1 round=1000
    net=127.$(($$ / 250 % 250 + 1)).$(($$ % 250 + 1))
    dir=$(mktemp -d "${TMPDIR:-/tmp}/drill-$drill.XXXXXX") || exit 1
    trap clean EXIT
    trap 'exit 130' INT TERM HUP
    "$drill"
    printf 'PASS  %s\n' "$drill"
}

# In which namespaces, if it can have them: its own root needs no other.
namespace() {
    case $1 in
    cut) set -- -mn ;;
    full) set -- -m ;;
    *) return ;;
    esac
    for how in "unshare $1" "unshare -r $1"; do
        $how true 2>/dev/null && echo "$how" && return
    done
}

if [ "${1-}" = -one ]; then
    one "$2"
    exit
fi
for drill in "$@"; do
    case " $(echo $all) " in
    *" $drill "*) ;;
    *)
        echo "no drill '$drill'; there are:" $all >&2
        exit 2
        ;;
    esac
done
[ $# -gt 0 ] || set -- $all
trap 'exit 130' INT TERM HUP
passed=0 failed=0 skipped=0 names=
for drill in "$@"; do
    NAMESPACE=$(namespace "$drill")
    export NAMESPACE
    timeout --foreground -k 30 180 $NAMESPACE "$0" -one "$drill"
    case $? in
    0) passed=$((passed + 1)) ;;
    77) skipped=$((skipped + 1)) ;;
    *) failed=$((failed + 1)) names="$names $drill" ;;
    esac
done
echo "drills: $passed passed, $failed failed, $skipped skipped${names:+;$names}"
[ $failed = 0 ]
