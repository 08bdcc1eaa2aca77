#!/usr/bin/env bash
#
# bench.sh - how much of the machine a request costs, beside the least it can.
#
# usage: make bench [SETTING=VALUE ...]    or: bench/bench.sh [SETTING=VALUE ...]
#
#   rows         "get absent put delete mixed get-consistent put-consistent cas
#                repair join start100 start1k sync compact overwrite idle",
#                or some of them
#   servers      "one three nginx": one node, three, files by nginx, or some
#   seconds      5: of one run
#   runs         3: of each row; the table shows medians
#   keys, size   100000 keys with values of 1024 bytes
#   connections  64: of wrk, divided evenly among its threads
#   repairkeys   1000000: keys, with values of 100 bytes, of repair
#   joinkeys     1000000: keys, with values of 1024 bytes, of join
#   startkeys    10000000: keys, with values of 100 bytes, of start100
#   startkeys1k  1000000: keys, with values of 1024 bytes, of start1k
#   compactkeys  400000: keys, with values of 1024 bytes, of compact
#   idlers       5000: connections that are idle, of idle
#   overwrites   10000000: writes to 10000 keys, with values of 1024 bytes, of
#                overwrite
#   flags        (none): more flags for estoraje, as flags="-sync none"
#
# How to read the table. Load generator and servers share the machine's cores
# and take them from each other, so requests a second say as much of wrk as
# of the server. CPU us is the time that all processes of a server together
# had for one request, in the run and in the second after it; etcd's is not
# in it, since no request goes there. "to floor" is that time divided by the
# floor's (bench/floor.c), which did the same just before: the median of the
# runs, the least and the greatest. "bad" are unexpected answers (load.lua).
#
# wrk has two threads, as one costs more than a server does and would be what
# is measured. Three nodes get three threads, each with a node of its own.
# nginx serves the same values as files, with as many workers as cores and
# without its cache of open files, for which there may be too many. All of
# it needs Linux, for /proc.
#
# get-consistent and put-consistent are of three nodes only, and have no floor:
# beside them stands "plain", the same nodes without ?consistent, and "to floor"
# is to that.
#
# Some rows are no part of the table. Each prints what it measures, and has a
# target below the table, for the median of `runs`. cas, repair and join are of
# the three nodes, the others have each a new one that is alone:
#
#   cas        writes a second by compare-and-set on one key, each with a read
#              before it, of 64 clients over all nodes to those of one alone
#   repair     bytes and CPU time of a full round of repair that finds nothing;
#              the bytes are all that pass the loopback, less what did before
#   join       p99 of GET through the three while a fourth node joins them, to
#              that before; the bytes it is sent, to those of what it then has
#   start100   memory of its own that a node needs for a key; the seconds from
#              a start to its line "ready", with the logs in the page cache
#   start1k    bytes of logs a second that such a start reads
#   sync       writes a second with -sync always, 64 connections to one
#   compact    p99 of GET while logs are compacted, to that while none is
#   overwrite  bytes of logs after many overwrites, to what is live in them
#   idle       GETs a second beside idle connections, to those without; how long
#              one of these waits for an answer then (the median, and beside it
#              the 99th percentile of all); p99 of GET beside slowhttptest's
#              three modes, to that without, the worst of the three
#
# With the settings above they take up to 20 minutes, and 2.5 GB of disk.

set -u
shopt -s extglob
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
cd "$(dirname "$0")/.." || exit 2

all="get absent put delete mixed get-consistent put-consistent cas repair \
join start100 start1k sync compact overwrite idle"
: "${rows:=$all}" "${servers:=one three nginx}"
: "${seconds:=5}" "${runs:=3}" "${keys:=100000}" "${size:=1024}"
: "${connections:=64}" "${flags:=}"
: "${startkeys:=10000000}" "${startkeys1k:=1000000}" "${compactkeys:=400000}"
: "${idlers:=5000}" "${overwrites:=10000000}" "${repairkeys:=1000000}" "${joinkeys:=1000000}"
for setting; do
    case $setting in
    rows=* | servers=* | seconds=* | runs=* | keys=* | size=* | \
        connections=* | startkeys=* | startkeys1k=* | \
        compactkeys=* | idlers=* | overwrites=* | repairkeys=* | joinkeys=* | flags=*)
        printf -v "${setting%%=*}" %s "${setting#*=}" ;;
    *)
        echo "bench.sh: $setting: not one of the settings in its head" >&2
        exit 2 ;;
    esac
done
read -ra flags <<<"$flags"

declare -A pids         # by server: its processes, with blanks between
declare -A urls         # by server: its URL, of the first node if of three
three_ports=            # of the three nodes
three_etcd=             # of one of them

# Says what went wrong, shows the end of a log if one is named, and ends.
fail() { # TEXT [LOG]
    echo "bench.sh: $1" >&2
    [ -z "${2:-}" ] || tail -n 5 "$2" >&2
    exit 1
}

# --- processes ------------------------------------------------------------

# The processes PID... and all that they have started: "pid ticks name" each.
family() {
    cat /proc/[0-9]*/stat 2>/dev/null | awk -v roots="$*" '
        {
            pid = $1
            name[pid] = $0
            gsub(/^[^(]*\(|\)[^)]*$/, "", name[pid])
            sub(/^.*\) /, "")
            parent[pid] = $2
            ticks[pid] = $12 + $13
        }
        END {
            n = split(roots, list)
            for (i = 1; i <= n; i++)
                root[list[i]] = 1
            for (pid in ticks) {
                for (p = pid; p in ticks && !(p in root); p = parent[p])
                    ;
                if (p in ticks)
                    print pid, ticks[pid], name[pid]
            }
        }'
}

# The CPU time that SERVER has had so far, in clock ticks, without etcd's.
cpu() { # SERVER
    family "${pids[$1]}" | awk '$3 != "etcd" { n += $2 } END { print n + 0 }'
}

# Ends all servers and what they started, and removes their files.
clean() {
    local all pid i
    trap '' INT TERM HUP
    all=$(family "${pids[*]}" | awk '{ print $1 }')
    for pid in ${pids[*]}; do
        kill -TERM "$pid" 2>/dev/null
    done
    for ((i = 0; i < 100; i++)); do
        # shellcheck disable=SC2086
        kill -0 $all 2>/dev/null || break
        sleep 0.1
    done
    for pid in $all; do
        kill -KILL "$pid" 2>/dev/null
    done
    rm -rf "$dir"
}

next_port=$((20000 + RANDOM % 8000))

# Sets $port to a free port whose neighbour $((port + 1)) is free as well.
take_ports() {
    while port=$next_port && next_port=$((next_port + 2)) &&
        { : <"/dev/tcp/127.0.0.1/$port" ||
            : <"/dev/tcp/127.0.0.1/$((port + 1))"; } 2>/dev/null; do
        :
    done
}

# Starts COMMAND as a process of SERVER, with its log in $dir/NAME.log.
start() { # SERVER NAME COMMAND...
    local server=$1 log=$dir/$2.log
    shift 2
    "$@" >"$log" 2>&1 &
    pids[$server]="${pids[$server]:-} $!"
}

# Waits until the server with the log NAME answers 200 to URL.
ready() { # NAME URL
    local i pid
    for ((i = 0; i < 300; i++)); do
        [ "$(curl -s -o "$dir/body" -w '%{http_code}' "$2")" != 200 ] || return
        for pid in ${pids[*]}; do
            kill -0 "$pid" || fail "$1 has ended" "$dir/$1.log"
        done
        sleep 0.1
    done
    fail "$1: no 200 from $2" "$dir/$1.log"
}

# --- servers --------------------------------------------------------------

start_floor() {
    mkdir -p build
    "${CC:-cc}" -O2 -std=c11 -D_POSIX_C_SOURCE=200809L -pthread \
        -o build/floor bench/floor.c || exit 1
    take_ports
    urls[floor]=http://127.0.0.1:$port
    start floor floor build/floor -p "$port" -d "$dir" -k "$keys" -v "$size" \
        -s 3600
    ready floor "${urls[floor]}/key-000000"
}

# Starts a node that is alone.
start_node() { # SERVER [FLAG...]
    take_ports
    urls[$1]=http://127.0.0.1:$port
    start "$1" "$1" ./estoraje -port "$port" -peerPort $((port + 1)) \
        -dataPath "$dir/$1" "${flags[@]}" "${@:2}"
    ready "$1" "${urls[$1]}/_ready"
}

# Stops a node that is alone.
stop_node() { # SERVER
    local pid=${pids[$1]# }
    unset "pids[$1]"
    kill -TERM "$pid"
    wait "$pid" || fail "$1 has not ended well" "$dir/$1.log"
}

start_three() {
    local n cluster=
    for n in 1 2 3; do
        take_ports
        cluster=$cluster,node$n=http://127.0.0.1:$((port + 1))
    done
    three_etcd=http://127.0.0.1:$port
    for n in 1 2 3; do
        take_ports
        three_ports="$three_ports $port"
        start three "node$n" ./estoraje -name "node$n" -port "$port" \
            -peerPort $((port + 1)) -dataPath "$dir/node$n" \
            -initialCluster "${cluster#,}" "${flags[@]}"
    done
    n=0
    for port in $three_ports; do
        ready "node$((n += 1))" "http://127.0.0.1:$port/_ready"
    done
    urls[three]=http://127.0.0.1:$port
    pids[plain]=${pids[three]}
    urls[plain]=${urls[three]}
}

start_nginx() {
    mkdir -p "$dir/www"
    head -c $((keys * size)) /dev/zero | tr '\0' v |
        split -b "$size" -a 6 -d - "$dir/www/key-"
    take_ports
    urls[nginx]=http://127.0.0.1:$port
    cat >"$dir/nginx.conf" <<END
daemon off;
$([ "$(id -u)" != 0 ] || echo "user $(id -un) $(id -gn);")
worker_processes $(nproc);
pid $dir/nginx.pid;
error_log $dir/nginx.log crit;
events { worker_connections 1024; }
http {
    access_log off;
    log_not_found off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 100000000;
    client_body_temp_path $dir/nginx-body;
    proxy_temp_path $dir/nginx-proxy;
    fastcgi_temp_path $dir/nginx-fastcgi;
    uwsgi_temp_path $dir/nginx-uwsgi;
    scgi_temp_path $dir/nginx-scgi;
    server { listen 127.0.0.1:$port; root $dir/www; }
}
END
    start nginx nginx nginx -e "$dir/nginx.log" -c "$dir/nginx.conf"
    ready nginx "${urls[nginx]}/key-000000"
}

# --- measuring ------------------------------------------------------------

# Stores COUNT new keys in SERVER, or overwrites them with PUTS writes in turns.
# An answer that is not the right one ends the program.
fill() { # SERVER PREFIX COUNT BYTES [PUTS]
    local answer right="$3 0 0" puts=${5:-$3}
    [ -z "${5:-}" ] || right="0 $5 0"
    answer=$(wrk -t1 -c"$connections" -d$((30 + puts / 2000))s \
        -s bench/fill.lua "${urls[$1]}" -- "${@:2}" | grep '^filled')
    [ "$answer" = "filled $right" ] ||
        fail "$puts writes to '$1': ${answer:-not done in time}"
}

# The servers that have this row: nginx only reads.
servers_of() { # ROW
    local server
    if [[ $1 == *-consistent ]]; then
        [[ " $servers " != *" three "* ]] || echo plain three
        return
    fi
    echo floor
    for server in $servers; do
        case $server:$1 in
        nginx:get | nginx:absent | one:* | three:*) echo "$server" ;;
        esac
    done
}

# One run of one row; what it measured is a line more in $dir/results.
measure() { # ROW SERVER RUN
    local op=$1 threads=2 prefix=key ports=() before answer
    case $1 in
    absent)
        prefix=abs ;;
    delete)
        prefix=$(printf 'd%02d' "$3")
        [ "$2" = floor ] || { fill "$2" "$prefix" "$keys" "$size"; sleep 1; } ;;
    esac
    case $2 in
    plain | three)
        threads=3
        read -ra ports <<<"$three_ports" ;;
    esac
    [ "$2" != plain ] || op=${op%-consistent}
    set -- "$@" wrk -t"$threads" -c"$connections" -d"${seconds}s" \
        -s bench/load.lua "${urls[$2]}" -- "$op" "$prefix" "$keys" "$size" \
        "${ports[@]}"
    [ "$3" != 1 ] || echo "$2: ${*:4}"
    before=$(cpu "$2")
    answer=$("${@:4}" 2>&1) || fail "wrk: $answer"
    sleep 1
    answer="$(($(cpu "$2") - before)) $(sed -n 's/^result //p' <<<"$answer")"
    echo "$1 $2 $3 $answer" >>"$dir/results"
}

# The median of NUMBER...
median() {
    printf '%s\n' "$@" | sort -g |
        awk '{ n[NR] = $1 }
            END { print (n[int((NR + 1) / 2)] + n[int(NR / 2) + 1]) / 2 }'
}

# What an expression of awk's comes to.
calculate() {
    awk "BEGIN { print $* }"
}

# Notes the figure NAME for the targets.
note() { # NAME VALUE
    echo "= $1 $2" >>"$dir/results"
}

# The memory that SERVER, a node alone, has for itself: kilobytes.
memory_of() { # SERVER
    awk '$1 == "RssAnon:" { print $2 }' "/proc/${pids[$1]# }/status"
}

# The bytes of all logs of SERVER, with those that compaction is writing.
log_bytes() { # SERVER
    find "$dir/$1" \( -name '*.log' -o -name '*.new' \) -printf '%s\n' \
        2>/dev/null | awk '{ n += $1 } END { printf "%d\n", n }'
}

# Fills a node without syncs, which is faster, and notes as NAME the bytes of
# memory of its own that it needs for a key: a few keys come first, over as many
# connections, so that what these need is not counted. Then notes as
# NAME-seconds what a start of it takes until its line "ready", and as NAME-rate
# how many MB of logs that is a second.
measure_start() { # NAME KEYS BYTES
    local run base bytes line began took times=() pipe=$dir/pipe
    start_node "$1" -sync none
    fill "$1" few 2000 "$3"
    sleep 2
    base=$(memory_of "$1")
    echo "$1: $2 keys with values of $3 bytes, flags: ${flags[*]} -sync none"
    fill "$1" key "$2" "$3"
    sleep 2
    note "$1" "$(calculate "($(memory_of "$1") - $base) * 1024 / $2")"
    stop_node "$1"
    sync -f "$dir"
    bytes=$(log_bytes "$1")
    [ -p "$pipe" ] || mkfifo "$pipe"
    for ((run = 1; run <= runs; run++)); do
        cat "$dir/$1"/*.log >/dev/null
        began=$EPOCHREALTIME
        ./estoraje -port "$port" -peerPort $((port + 1)) -dataPath "$dir/$1" \
            "${flags[@]}" >"$pipe" 2>&1 &
        pids[$1]=$!
        exec 3<"$pipe"
        while read -r line <&3 && [[ $line != ready* ]]; do
            :
        done
        took=$(calculate "$EPOCHREALTIME - $began")
        [[ $line == ready* ]] || fail "$1 has not started"
        echo "$1: start $run: $took s, $bytes bytes of logs," \
            "memory then $(memory_of "$1") kB"
        times+=("$took")
        stop_node "$1"
        exec 3<&-
    done
    took=$(median "${times[@]}")
    note "$1-seconds" "$took"
    note "$1-rate" "$(calculate "$bytes / 1e6 / $took")"
    rm -r "${dir:?}/$1"
}

# Notes as sync how many times as many writes a second reach the disk with 64
# connections as with one.
measure_sync() {
    local run connected answer result rate=() ratios=()
    start_node sync -sync always
    echo "sync: -sync always on $(stat -f -c %T "$dir"), wrk with 1 and 64" \
        "connections, $seconds s each, PUT of 1024 bytes over $keys keys"
    for ((run = 1; run <= runs; run++)); do
        for connected in 1 64; do
            answer=$(wrk -t1 -c"$connected" -d"${seconds}s" -s bench/load.lua \
                "${urls[sync]}" -- put key "$keys" 1024) || fail "wrk: $answer"
            read -ra result <<<"$(sed -n 's/^result //p' <<<"$answer")"
            ((result[4] + result[5] == 0)) || fail "sync: ${result[*]}"
            rate[connected]=$(calculate "${result[0]} * 1e6 / ${result[1]}")
        done
        ratios+=("$(calculate "${rate[64]} / ${rate[1]}")")
        echo "sync: run $run: ${rate[1]} and ${rate[64]} writes/s," \
            "${ratios[-1]} times"
    done
    note sync "$(median "${ratios[@]}")"
    stop_node sync
    rm -r "${dir:?}/sync"
}

# Notes as cas how many times as many writes a second 64 clients get through by
# compare-and-set on one key as one does alone. Each run has a key of its own,
# since it matters which nodes own it. In the end the counter is the number of
# writes that were done, and of some that wrk has no answer of since it ended.
measure_cas() {
    local run clients answer result ratios=() rate=() value sum ports
    read -ra ports <<<"$three_ports"
    echo "cas: wrk with 1 and 64 threads of one connection, $seconds s each," \
        "over ${#ports[@]} nodes"
    for ((run = 1; run <= runs; run++)); do
        curl -s -o "$dir/body" -T - "${urls[three]}/cas-$run" <<<0
        sum=0
        for clients in 1 64; do
            answer=$(wrk -t"$clients" -c"$clients" -d"${seconds}s" \
                -s bench/cas.lua "${urls[three]}" -- "cas-$run" \
                "${ports[@]}") || fail "wrk: $answer"
            read -ra result <<<"$(sed -n 's/^cas //p' <<<"$answer")"
            ((result[3] + result[4] == 0)) || fail "cas: ${result[*]}"
            rate[clients]=$(calculate "${result[0]} * 1e6 / ${result[2]}")
            ((sum += result[0]))
            sleep 1
        done
        value=$(curl -s "${urls[three]}/cas-$run?consistent")
        ((value >= sum && value <= sum + 65)) ||
            fail "cas: $sum writes were done, and the counter is at $value"
        ratios+=("$(calculate "${rate[64]} / ${rate[1]}")")
        echo "cas: run $run: ${rate[1]} and ${rate[64]} writes/s," \
            "${result[1]} of the 64 clients' refused, ${ratios[-1]} times"
    done
    note cas "$(median "${ratios[@]}")"
}

# What has gone so far: bytes over the loopback, clock ticks of the three nodes.
spent() {
    echo "$(awk '$1 == "lo:" { print $2 }' /proc/net/dev)" "$(cpu three)"
}

# Sets $phase to what goes while PID stands still for 1.4 s, if there is one, and
# in the 5 s after that.
measure_repair_phase() { # [PID]
    local before
    read -ra before <<<"$(spent)"
    [ -z "${1:-}" ] || kill -STOP "$1"
    sleep 1.4
    [ -z "${1:-}" ] || kill -CONT "$1"
    sleep 5
    read -ra phase <<<"$(spent)"
    ((phase[0] -= before[0], phase[1] -= before[1]))
}

# Notes as repair-bytes and repair-cpu what a full round of repair between equal
# replicas takes, in MB, and seconds of all three nodes. A node that has stood
# still for a while makes one, since it cannot know what it has missed; not for
# so long that the others miss it, since they would make one each as well. What
# the same time takes without a round, for heartbeats and etcd, comes off.
measure_repair() {
    local run pid said round phase bytes=() ticks=() log=$dir/node1.log
    fill three repair "$repairkeys" 100
    sleep 5
    read -r pid _ <<<"${pids[three]}"
    echo "repair: $repairkeys keys of 100 bytes on three nodes, beside those of" \
        "other rows"
    for ((run = 1; run <= runs; run++)); do
        said=$(grep -c 'this process was paused' "$log")
        measure_repair_phase "$pid"
        round=("${phase[@]}")
        (($(grep -c 'this process was paused' "$log") > said)) ||
            fail "repair: the node is not in doubt" "$log"
        curl -s -o "$dir/body" "${urls[three]}/_cluster_status"
        [ "$(grep -o '"status":"Ready"' "$dir/body" | wc -l)" = 3 ] ||
            fail "repair: no round within 5 s" "$log"
        measure_repair_phase
        echo "repair: run $run: ${round[0]} bytes and ${round[1]} ticks with a" \
            "round, ${phase[0]} and ${phase[1]} without"
        bytes+=("$(calculate "(${round[0]} - ${phase[0]}) / 1e6")")
        ticks+=("$((round[1] - phase[1]))")
    done
    note repair-bytes "$(median "${bytes[@]}")"
    note repair-cpu \
        "$(calculate "$(median "${ticks[@]}") / $(getconf CLK_TCK)")"
}

# Waits until the three are at an EPOCH, with so many nodes that are Ready, and
# says what they say then.
await_epoch() { # EPOCH NODES
    local i status
    for ((i = 0; i < 6000; i++)); do
        status=$(curl -s "${urls[three]}/_cluster_status")
        if [[ $status == *"\"epoch\":$1,"* ]] &&
            [ "$(grep -o '"status":"Ready"' <<<"$status" | wc -l)" = "$2" ]; then
            echo "$status"
            return
        fi
        sleep 0.1
    done
    fail "no $2 nodes at epoch $1: $status"
}

# Reads keys of the row join through the three nodes, for so many seconds or
# until SIGINT. The file "got" has what wrk says.
read_three() { # SECONDS
    local ports
    read -ra ports <<<"$three_ports"
    exec wrk -t3 -c"$connections" -d"$1s" -s bench/load.lua "${urls[three]}" \
        -- get join "$joinkeys" 1024 "${ports[@]}" >"$dir/got"
}

# Sets $phase to what read_three has found: reads, microseconds, p50, p99. All
# answers have to be right.
reads_done() {
    read -ra phase <<<"$(sed -n 's/^result //p' "$dir/got")"
    [ "${phase[4]-} ${phase[5]-}" = "0 0" ] || fail "join: ${phase[*]}"
}

# Notes as join how many times as long the p99 of GET is while a node joins, and
# as join-bytes how many bytes it is sent to one of the records that it has
# then. It leaves again after each run.
measure_join() {
    local run node epoch before began took status sent has p99=() bytes=()
    fill three join "$joinkeys" 1024
    echo "join: a fourth node, $joinkeys keys of 1024 bytes beside those of" \
        "other rows, GET with $connections connections through the three"
    for ((run = 1; run <= runs; run++)); do
        node=node$((3 + run))
        epoch=$(curl -s "${urls[three]}/_cluster_status" |
            sed 's/.*"epoch":\([0-9]*\).*/\1/')
        (read_three "$seconds")
        reads_done
        before=("${phase[@]}")
        read_three 3600 &
        pids[wrk]=$!
        take_ports
        began=$EPOCHREALTIME
        start joiner "$node" ./estoraje -name "$node" -port "$port" \
            -peerPort $((port + 1)) -dataPath "$dir/$node" -add \
            -etcd "$three_etcd" "${flags[@]}"
        status=$(await_epoch $((epoch + 2)) 4) || exit 1
        took=$(calculate "$EPOCHREALTIME - $began")
        kill -INT "${pids[wrk]}"
        wait "${pids[wrk]}"
        unset "pids[wrk]"
        reads_done
        sent=$(awk '/ repair records=/ && match($0, / bytes=[0-9]+/) {
            n += substr($0, RSTART + 7, RLENGTH - 7)
        }
        END { printf "%d\n", n }' "$dir/$node.log")
        has=$(sed "s/.*\"name\":\"$node\"//; s/.*\"bytes\":\([0-9]*\).*/\1/" \
            <<<"$status")
        p99+=("$(calculate "${phase[3]} / ${before[3]}")")
        bytes+=("$(calculate "$sent / $has")")
        echo "join: run $run: $took s, $sent bytes sent for $has, p99" \
            "${before[3]} us (${before[0]} GETs), then ${phase[3]} us" \
            "(${phase[0]}), ${p99[-1]} times"
        curl -s -X DELETE "http://127.0.0.1:$((port + 1))/_nodes/delete/$node"
        await_epoch $((epoch + 4)) 3 >"$dir/body"
        stop_node joiner
        rm -r "${dir:?}/$node"
    done
    note join "$(median "${p99[@]}")"
    note join-bytes "$(median "${bytes[@]}")"
}

# Whether the node of the row compact is writing a log anew.
compacts() {
    set -- "$dir"/compact/*.new
    [ -e "$1" ]
}

# Reads keys while they are overwritten at a fixed pace. Sets $phase to the p99
# of GET in microseconds, the GETs, the PUTs, and in how many looks of a
# hundred a log was being written anew.
measure_compact_phase() {
    local looks=0 seen=0 wrote=$dir/wrote got=$dir/got writer reader result
    wrk -t1 -c8 -d"${seconds}s" -s bench/fill.lua "${urls[compact]}" -- \
        key "$compactkeys" 1024 1000000000 20 >"$wrote" &
    writer=$!
    wrk -t2 -c"$connections" -d"${seconds}s" -s bench/load.lua \
        "${urls[compact]}" -- get key "$compactkeys" 1024 >"$got" &
    reader=$!
    pids[wrk]="$writer $reader"
    while kill -0 "$reader" 2>/dev/null; do
        ! compacts || ((seen += 1))
        ((looks += 1))
        sleep 0.05
    done
    wait "$writer" "$reader"
    unset "pids[wrk]"
    read -ra result <<<"$(sed -n 's/^result //p' "$got")"
    [ "${result[4]-} ${result[5]-}" = "0 0" ] || fail "compact: ${result[*]}"
    ! grep Non-2xx "$wrote" || fail "compact: writes failed"
    phase=("${result[3]}" "${result[0]}"
        "$(awk '/requests in/ { print $1 }' "$wrote")" $((100 * seen / looks)))
}

# Notes as compact how many times as long the p99 of GET is with compaction.
#
# A log is compacted when it has as many dead bytes as live ones and half a MiB
# more. Writes that leave the processor time for GETs bring that about too
# seldom to measure it. So all keys are overwritten first, in turns: half as
# much as it takes, and GETs beside paced writes are measured; then more than
# the other half, so that all logs are ripe at once, and the same is
# measured again. They are large enough that to compact them, one by one, takes
# longer than that. As many writes come just before the one as before the
# other, and -sync none leaves the disk to what compaction itself syncs, since
# otherwise all that was overwritten would be synced meanwhile. The next run
# begins when nothing is left to compact. "compacting" tells how far all that
# went so.
measure_compact() {
    local run half idle ratios=() off phase
    half=$((compactkeys / 2 + 256 * 524288 / 1088 / 2))
    start_node compact -sync none
    fill compact key "$compactkeys" 1024
    echo "compact: GET with $connections connections beside wrk with 8 that" \
        "PUT 16 each 20 ms, $seconds s each, $compactkeys keys of 1024 bytes," \
        "flags: ${flags[*]} -sync none"
    for ((run = 1; run <= runs; run++)); do
        for ((idle = 0; idle < 20; idle++)); do
            ! compacts || idle=0
            sleep 0.1
        done
        fill compact key "$compactkeys" 1024 $((half * 9 / 10))
        measure_compact_phase
        off=("${phase[@]}")
        fill compact key "$compactkeys" 1024 $((half * 12 / 10))
        measure_compact_phase
        ratios+=("$(calculate "${phase[0]} / ${off[0]}")")
        echo "compact: run $run: p99 ${off[0]} us (${off[1]} GETs, ${off[2]}" \
            "PUTs, compacting ${off[3]} % of the time), then ${phase[0]} us" \
            "(${phase[1]}, ${phase[2]}, ${phase[3]} %), ${ratios[-1]} times"
    done
    note compact "$(median "${ratios[@]}")"
    stop_node compact
    rm -r "${dir:?}/compact"
}

# Notes as overwrite what the logs have in the end, less a MiB for each, over
# what is live in them.
measure_overwrite() {
    local before=-1 most=0 bytes writer live began
    start_node overwrite
    fill overwrite key 10000 1024
    echo "overwrite: $overwrites PUTs over 10000 keys of 1024 bytes"
    began=$SECONDS
    fill overwrite key 10000 1024 "$overwrites" &
    writer=$!
    while kill -0 "$writer" 2>/dev/null; do
        bytes=$(log_bytes overwrite)
        ((bytes <= most)) || most=$bytes
        sleep 0.5
    done
    wait "$writer" || exit 1
    began=$((SECONDS - began))
    while bytes=$(log_bytes overwrite) && ((bytes != before)); do
        before=$bytes
        sleep 2
    done
    stop_node overwrite
    live=$(./estoraje -check "$dir/overwrite" | awk '
        match($0, /live_bytes=[0-9]+/) {
            n += substr($0, RSTART + 11, RLENGTH - 11)
        }
        END { printf "%d\n", n }')
    echo "overwrite: written in $began s, $bytes bytes of logs, $most on the" \
        "way, $live bytes live: $(calculate "$bytes / $live") times"
    ((bytes -= 256 * 1048576, bytes > 0)) || bytes=0
    note overwrite "$(calculate "$bytes / $live")"
    rm -r "${dir:?}/overwrite"
}

# Reads keys of the row idle. Sets $phase to the GETs a second, and their p99 in
# microseconds.
measure_idle_phase() {
    local answer result
    answer=$(wrk -t2 -c"$connections" -d"${seconds}s" -s bench/load.lua \
        "${urls[idle]}" -- get key 1000 "$size") || fail "wrk: $answer"
    read -ra result <<<"$(sed -n 's/^result //p' <<<"$answer")"
    ((result[4] + result[5] == 0)) || fail "idle: ${result[*]}"
    phase=("$(calculate "${result[0]} * 1e6 / ${result[1]}")" "${result[3]}")
}

# Notes as idle how much of the throughput idle connections leave, as idle-ms
# what one of them waits, and as slow what slow clients make of the p99.
measure_idle() {
    local i run mode modes answer before phase waits worst
    local ratios=() median_ms=() slow=()
    mkdir -p build
    "${CC:-cc}" -O2 -std=c11 -D_POSIX_C_SOURCE=200809L -o build/idle \
        bench/idle.c || exit 1
    start_node idle -sync none
    fill idle key 1000 "$size"
    head -c 4194304 /dev/zero | curl -s -T - "${urls[idle]}/large"
    modes=("-H -i 1 -x 24 -u ${urls[idle]}/key-000000"
        "-B -i 1 -t PUT -s 100000 -x 24 -u ${urls[idle]}/body"
        "-X -n 1 -z 32 -w 512 -y 1024 -u ${urls[idle]}/large")
    command -v slowhttptest >/dev/null || modes=()
    echo "idle: GET with $connections connections beside $idlers idle ones," \
        "and beside slowhttptest with 1000, $seconds s each"
    for ((run = 1; run <= runs; run++)); do
        measure_idle_phase
        before=("${phase[@]}")
        coproc IDLE { exec build/idle "${urls[idle]##*:}" "$idlers"; }
        pids[idlers]=$IDLE_PID
        read -r answer <&"${IDLE[0]}" || fail "idle: not open"
        sleep 0.5
        measure_idle_phase
        exec {IDLE[1]}>&-
        read -ra waits <&"${IDLE[0]}" || fail "idle: not answered"
        wait "${pids[idlers]}"
        unset "pids[idlers]"
        ratios+=("$(calculate "${phase[0]} / ${before[0]}")")
        median_ms+=("$(calculate "${waits[2]} / 1e3")")
        echo "idle: run $run: ${before[0]} GETs/s, then ${phase[0]}," \
            "${ratios[-1]} times; ${waits[1]} answers to idle ones, us:" \
            "${waits[2]} (median), ${waits[3]} (p99), ${waits[4]} (greatest)"
        worst=0
        for mode in "${modes[@]}"; do
            # shellcheck disable=SC2086
            slowhttptest -c 1000 -r 1000 -l 3600 $mode >/dev/null 2>&1 &
            pids[slow]=$!
            for ((i = 0; i < 100; i++)); do # until all are connected
                sleep 0.1
                (($(curl -s "${urls[idle]}/_metrics" | sed -n \
                    's/^estoraje_connections{port="client"} //p') < 1000)) ||
                    break
            done
            measure_idle_phase
            kill "${pids[slow]}"
            wait "${pids[slow]}"
            unset "pids[slow]"
            sleep 1
            worst=$(calculate \
                "((x = ${phase[1]} / ${before[1]}) > $worst ? x : $worst)")
            echo "idle: run $run: p99 ${before[1]} us (${before[0]} GETs/s)," \
                "then ${phase[1]} (${phase[0]}) beside slowhttptest ${mode%% *}"
        done
        slow+=("$worst")
    done
    note idle "$(median "${ratios[@]}")"
    note idle-ms "$(median "${median_ms[@]}")"
    ((${#modes[@]} == 0)) || note slow "$(median "${slow[@]}")"
    stop_node idle
    rm -r "${dir:?}/idle"
}

# --- what it was measured on ----------------------------------------------

describe() {
    echo "machine: $(nproc) x $(sed -n 's/^model name[^:]*: //p' \
        /proc/cpuinfo | sed 1q), $(uname -srm)"
    echo "programs: $(./estoraje -version | sed 1q)," \
        "$(wrk -v 2>&1 | sed -n 's/ *Copyright.*//p')," \
        "$(nginx -v 2>&1 | sed 's/^nginx version: //;1q')," \
        "$(etcd --version 2>&1 | sed 1q)"
    echo "settings: $connections connections, $keys keys of $size bytes," \
        "$runs runs of $seconds s, flags: ${flags[*]:-none}"
}

# The answers' sizes: a ratio compares like with like only if they are close.
describe_answers() {
    local server
    head -c "$size" /dev/zero | tr '\0' v >"$dir/value"
    for server in floor $servers; do
        curl -s -o "$dir/body" -w "answers of $server: GET %{http_code}, \
%{size_header} bytes and a value of %{size_download}" \
            "${urls[$server]}/key-000000"
        curl -s -o "$dir/body" -w '; PUT %{http_code}, %{size_header} bytes\n' \
            -T "$dir/value" "${urls[$server]}/key-000000"
    done
}

# --- all of it ------------------------------------------------------------

[ -r /proc/self/stat ] || fail "there is no /proc to read CPU time from"
[ -x ./estoraje ] || fail "there is no ./estoraje; make builds it"
for row in $rows; do
    [[ " $all " == *" $row "* ]] || fail "$row: rows are $all"
done
command -v nginx >/dev/null || servers=${servers//nginx/}
command -v etcd >/dev/null || servers=${servers//three/}
dir=$(mktemp -d "${TMPDIR:-/tmp}/estoraje-bench.XXXXXX") || exit 1
trap clean EXIT
trap 'exit 130' INT TERM HUP
: >"$dir/results"

describe
[[ " $servers " == *" three "* ]] || rows=${rows//@(cas|repair|join)/}
if [[ $rows =~ get|absent|put|delete|mixed|cas|repair|join ]]; then
    start_floor
    for server in $servers; do
        case $server in
        one) start_node one ;;
        three) start_three ;;
        nginx) start_nginx ;;
        *) fail "$server: servers are one, three and nginx" ;;
        esac
        [ "$server" = nginx ] || fill "$server" key "$keys" "$size"
    done
    describe_answers
fi
for row in $rows; do
    case $row in
    start100) measure_start start100 "$startkeys" 100 ;;
    start1k) measure_start start1k "$startkeys1k" 1024 ;;
    cas | repair | join | sync | compact | overwrite | idle) "measure_$row" ;;
    *)
        for ((run = 1; run <= runs; run++)); do
            for server in $(servers_of "$row"); do
                measure "$row" "$server" "$run"
            done
        done ;;
    esac
done
awk -f bench/table.awk -v hz="$(getconf CLK_TCK)" "$dir/results"
