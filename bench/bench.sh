#!/usr/bin/env bash
#
# bench.sh - how much of the machine a request costs, beside the least it can.
#
# usage: make bench [SETTING=VALUE ...]    or: bench/bench.sh [SETTING=VALUE ...]
#
#   rows         "get absent put delete mixed memory", or some of them
#   servers      "one three nginx": one node, three, files by nginx, or some
#   seconds      5: of one run
#   runs         3: of each row; the table shows medians
#   keys, size   100000 keys with values of 1024 bytes
#   connections  64: of wrk, divided evenly among its threads
#   memkeys      300000: keys, with values of 16 bytes, of the memory row
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

set -u
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
cd "$(dirname "$0")/.." || exit 2

: "${rows:=get absent put delete mixed memory}" "${servers:=one three nginx}"
: "${seconds:=5}" "${runs:=3}" "${keys:=100000}" "${size:=1024}"
: "${connections:=64}" "${memkeys:=300000}" "${flags:=}"
for setting; do
    case $setting in
    rows=* | servers=* | seconds=* | runs=* | keys=* | size=* | \
        connections=* | memkeys=* | flags=*)
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
memory=                 # measured bytes a key

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
start_node() { # SERVER
    take_ports
    urls[$1]=http://127.0.0.1:$port
    start "$1" "$1" ./estoraje -port "$port" -peerPort $((port + 1)) \
        -dataPath "$dir/$1" "${flags[@]}"
    ready "$1" "${urls[$1]}/_ready"
}

start_three() {
    local n cluster=
    for n in 1 2 3; do
        take_ports
        cluster=$cluster,node$n=http://127.0.0.1:$((port + 1))
    done
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

# Stores COUNT new keys in SERVER. One that is not stored ends the program.
fill() { # SERVER PREFIX COUNT BYTES
    local answer
    answer=$(wrk -t1 -c"$connections" -d$((30 + $3 / 2000))s \
        -s bench/fill.lua "${urls[$1]}" -- "$2" "$3" "$4" | grep '^filled')
    [ "$answer" = "filled $3 0" ] ||
        fail "storing $3 keys in '$1': ${answer:-not done in time}"
}

# The servers that have this row: nginx only reads.
servers_of() { # ROW
    local server
    echo floor
    for server in $servers; do
        case $server:$1 in
        nginx:get | nginx:absent | one:* | three:*) echo "$server" ;;
        esac
    done
}

# One run of one row; what it measured is a line more in $dir/results.
measure() { # ROW SERVER RUN
    local threads=2 prefix=key ports=() before answer
    case $1 in
    absent)
        prefix=abs ;;
    delete)
        prefix=$(printf 'd%02d' "$3")
        [ "$2" = floor ] || { fill "$2" "$prefix" "$keys" "$size"; sleep 1; } ;;
    esac
    [ "$2" != three ] || { threads=3; read -ra ports <<<"$three_ports"; }
    set -- "$@" wrk -t"$threads" -c"$connections" -d"${seconds}s" \
        -s bench/load.lua "${urls[$2]}" -- "$1" "$prefix" "$keys" "$size" \
        "${ports[@]}"
    [ "$3" != 1 ] || echo "$2: ${*:4}"
    before=$(cpu "$2")
    answer=$("${@:4}" 2>&1) || fail "wrk: $answer"
    sleep 1
    answer="$(($(cpu "$2") - before)) $(sed -n 's/^result //p' <<<"$answer")"
    echo "$1 $2 $3 $answer" >>"$dir/results"
}

# Sets $memory to the bytes of memory of its own that a node needs for a key.
# A few keys come first, over as many connections, so that what these need is
# not counted.
measure_memory() {
    local full base
    start_node memory
    fill memory few 2000 16
    sleep 2
    base=$(awk '$1 == "RssAnon:" { print $2 }' "/proc/${pids[memory]# }/status")
    echo "memory: $memkeys keys with values of 16 bytes"
    fill memory key "$memkeys" 16
    sleep 2
    full=$(awk '$1 == "RssAnon:" { print $2 }' "/proc/${pids[memory]# }/status")
    memory=$(awk "BEGIN { print ($full - $base) * 1024 / $memkeys }")
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
    [[ $row =~ ^(get|absent|put|delete|mixed|memory)$ ]] ||
        fail "$row: rows are get, absent, put, delete, mixed and memory"
done
command -v nginx >/dev/null || servers=${servers//nginx/}
command -v etcd >/dev/null || servers=${servers//three/}
dir=$(mktemp -d "${TMPDIR:-/tmp}/estoraje-bench.XXXXXX") || exit 1
trap clean EXIT
trap 'exit 130' INT TERM HUP
: >"$dir/results"

describe
if [[ $rows =~ get|absent|put|delete|mixed ]]; then
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
for row in ${rows/memory/}; do
    for ((run = 1; run <= runs; run++)); do
        for server in $(servers_of "$row"); do
            measure "$row" "$server" "$run"
        done
    done
done
[[ ! $rows =~ memory ]] || measure_memory
awk -f bench/table.awk -v hz="$(getconf CLK_TCK)" -v memory="$memory" \
    "$dir/results"
