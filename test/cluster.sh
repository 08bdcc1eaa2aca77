#!/bin/sh
# cluster.sh - three nodes on this machine, to try things with.
#
#   start         the nodes that do not run yet, and waits until all are ready
#   run           the same in the foreground, with the logs; Ctrl-C ends it
#   stop          ends the nodes that start or run began
#   restart       stop, then start
#   status        what the cluster says of itself
#   add-samples N stores N sample keys
#   clear         stop, then removes the nodes' data
#
# All is kept in data/: a node's data in data/node1, its log, its pid. Clients
# are served on 8000, 8001, 8002; nodes talk to each other on 9000, 9001, 9002;
# the nodes' etcds use 2479 to 2484, so an etcd of the system does not matter.
set -u
cd "$(dirname "$0")/.." || exit 1
data=$(pwd -P)/data
nodes="node1 node2 node3"
members=node1=http://127.0.0.1:2480,node2=http://127.0.0.1:2482
members=$members,node3=http://127.0.0.1:2484

# Proxies and the user's .curlrc are not for us.
curl() { command curl -q --noproxy '*' -s "$@"; }

# client_port node1: 8000.
client_port() { echo $((7999 + ${1#node})); }

# A session of its own keeps a node clear of the terminal's signals.
detach=$(command -v setsid || command -v nohup)

# ---------------------------------------------------------------------------
# Processes. A pid in a file may long be another process's: before one is
# believed, its command line must name the node's data directory.
# ---------------------------------------------------------------------------

# The command line of a process; nothing when it has ended, reaped or not.
command_line() {
    if [ -d /proc/self ]; then
        { tr '\0' ' ' <"/proc/$1/cmdline"; } 2>/dev/null
    else
        ps -o args= -p "$1" | grep -v '<defunct>'
    fi
}

# belongs PID NODE: is it the node, its guardian or its etcd?
belongs() {
    case "$(command_line "$1") " in
    *"$data/$2 "* | *"$data/$2/"*) true ;;
    *) false ;;
    esac
}

# The pid of a node that runs.
pid_of() {
    pid=$(cat "data/$1.pid" 2>/dev/null) && [ -n "$pid" ] &&
        belongs "$pid" "$1" && echo "$pid"
}

running() { pid_of "$1" >/dev/null; }

# A process and all that it began: the guardian, etcd.
family() {
    if [ -d /proc/self ]; then
        # pid (name) state parent; the name may hold anything.
        cat /proc/[0-9]*/stat 2>/dev/null |
            sed -n 's/^\([0-9]*\) (.*) [A-Za-z] \([0-9]*\) .*/\1 \2/p'
    else
        ps -A -o pid= -o ppid=
    fi | awk -v head="$1" '
        { parent[$1] = $2 }
        END {
            for (pid in parent) {
                for (p = pid; p > 1 && p != head; )
                    p = p in parent ? parent[p] : 0
                if (p == head)
                    print pid
            }
        }'
}

# begin NODE OUTPUT
begin() {
    n=${1#node}
    $detach ./estoraje -name "$1" -port $((7999 + n)) -peerPort $((8999 + n)) \
        -dataPath "$data/$1" -initialCluster "$members" \
        </dev/null >>"$2" 2>&1 &
    echo $! >"data/$1.pid"
}

# stop_nodes NODE...: SIGTERM to all, and SIGKILL to what is left after 20 s.
stop_nodes() {
    left=
    for node in "$@"; do
        if pid=$(pid_of "$node"); then
            for p in $(family "$pid"); do
                left="$left $node:$p"
            done
            kill -TERM "$pid" 2>/dev/null
        fi
        rm -f "data/$node.pid" "data/$node.pipe"
    done
    limit=$(($(date +%s) + 20))
    while [ -n "$left" ]; do
        still=
        for one in $left; do
            belongs "${one#*:}" "${one%:*}" && still="$still $one"
        done
        left=$still
        [ "$(date +%s)" -ge $limit ] && break
        [ -z "$left" ] || sleep 0.1
    done
    for one in $left; do
        echo "${one%:*}: pid ${one#*:} did not end in 20 s and is killed" >&2
        kill -KILL "${one#*:}" 2>/dev/null
    done
}

# ---------------------------------------------------------------------------
# Starting
# ---------------------------------------------------------------------------

# Ready: it has said so, and it says so when asked.
ready() {
    grep -q '^ready ' "data/$1.log" 2>/dev/null &&
        curl -f -o /dev/null -m 5 "http://127.0.0.1:$(client_port "$1")/_ready"
}

# failed NODE REASON: shows why, ends what was begun.
failed() {
    echo "$1 $2; the end of data/$1.log:" >&2
    tail -n 8 "data/$1.log" | sed 's/^/    /' >&2
    stop_nodes $begun
    wait
    exit 1
}

wait_until_ready() {
    limit=$(($(date +%s) + 90))
    until
        waiting=
        for node in $nodes; do
            # Our own child, so its pid cannot be another's.
            [ -n "$(command_line "$(cat "data/$node.pid")")" ] ||
                failed "$node" "did not start"
            ready "$node" || waiting=$node
        done
        [ -z "$waiting" ]
    do
        [ "$(date +%s)" -lt $limit ] ||
            failed "$waiting" "is not ready after 90 s"
        sleep 0.2
    done
}

hints() {
    cat <<END
ready: http://localhost:8000 http://localhost:8001 http://localhost:8002
try:   curl -X POST -d hello http://localhost:8000/greeting
       curl http://localhost:8001/greeting
       make status, make add-samples, make acceptance, make stop
logs:  data/node1.log data/node2.log data/node3.log
END
}

# Each start has a log of its own; the one before it is kept.
new_log() {
    [ ! -f "data/$1.log" ] || mv -f "data/$1.log" "data/$1.log.1"
    : >"data/$1.log"
}

# Sets begun to the nodes that do not run.
find_begun() {
    begun=
    for node in $nodes; do
        running "$node" || begun="$begun $node"
    done
    mkdir -p data || exit 1
    trap 'trap "" INT TERM HUP; stop_nodes $begun; wait; exit 1' INT TERM HUP
}

start() {
    find_begun
    if [ -z "$begun" ]; then
        echo "already running"
    fi
    for node in $begun; do
        new_log "$node"
        begin "$node" "data/$node.log"
    done
    wait_until_ready
    hints
}

# A node's lines to its log, and to the screen with the node's name.
show() {
    while IFS= read -r line; do
        printf '%s\n' "$line" >>"data/$1.log"
        printf '%s  %s\n' "$1" "$line"
    done
}

run() {
    find_begun
    if [ "$(echo $begun)" != "$nodes" ]; then
        echo "already running; make stop ends it" >&2
        exit 1
    fi
    for node in $nodes; do
        new_log "$node"
        rm -f "data/$node.pipe"
        mkfifo "data/$node.pipe" || exit 1
        show "$node" <"data/$node.pipe" &
        begin "$node" "data/$node.pipe"
    done
    wait_until_ready
    hints
    # A node may be killed for the sake of it: only the last ends the run.
    while running node1 || running node2 || running node3; do
        sleep 0.5
    done
    stop_nodes $nodes
    wait
}

# ---------------------------------------------------------------------------
# Using it
# ---------------------------------------------------------------------------

# The JSON of the first node that answers, as it comes but a node a line.
status() {
    for node in $nodes; do
        url=http://127.0.0.1:$(client_port "$node")/_cluster_status
        answer=$(curl -f -m 10 "$url") || continue
        printf '%s\n' "$answer" |
            awk '{ gsub(/\[\{/, "[\n  {"); gsub(/\}, *\{/, "},\n  {")
                   gsub(/\}\]/, "}\n]"); print }'
        return
    done
    echo "no node answers; make start begins them" >&2
    exit 1
}

# Keys sample/1 to sample/N, a thousand to a curl, to each node in turn.
add_samples() {
    case $1 in
    '' | 0* | *[!0-9]*)
        echo "number=$1: a number from 1 is wanted" >&2
        exit 1
        ;;
    esac
    first=1 stored=0
    while [ "$first" -le "$1" ]; do
        last=$((first + 999 < $1 ? first + 999 : $1))
        port=$((8000 + first / 1000 % 3))
        n=$(awk -v first=$first -v last=$last -v port=$port 'BEGIN {
                for (i = first; i <= last; i++) {
                    printf "url = http://127.0.0.1:%d/sample/%d\n", port, i
                    printf "data = \"sample value %d\"\n", i
                    print "output = /dev/null"
                    print "write-out = \"%{http_code}\\n\""
                    print (i < last ? "next" : "")
                }
            }' | curl -Z --parallel-max 20 -m 60 -K - 2>/dev/null |
            grep -c '^20[14]$')
        stored=$((stored + n))
        first=$((last + 1))
    done
    echo "$stored of $1 sample keys stored"
    [ "$stored" = "$1" ] || exit 1
    echo "try:   curl http://localhost:8002/sample/$1"
}

stop() {
    ran=
    for node in $nodes; do
        running "$node" && ran="$ran $node"
    done
    stop_nodes $nodes
    echo "stopped:${ran:- nothing was running}"
}

clear() {
    stop
    for node in $nodes; do
        rm -rf "data/$node" "data/$node.log" "data/$node.log.1"
    done
    if [ -d data ] && ! rmdir data 2>/dev/null; then
        echo "left in data/:" $(ls data)
    fi
}

case ${1-} in
start | run | stop | status | clear) $1 ;;
restart) stop && start ;;
add-samples) add_samples "${2-}" ;;
*)
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
