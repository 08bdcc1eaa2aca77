#!/bin/sh
# acceptance.sh [URL ...] - the steps that a user takes first, on every node.
#
# On each node: GET of a key that is not there prints nothing; POST it, GET it
# back, DELETE it; GET prints nothing. Then on each node a key that all others
# must see at once. curl's exit code is 0 throughout.
#
# The nodes' base URLs come from the arguments, or else from $URL, several
# separated by spaces, or else are those of `make start`. The keys used begin
# with acceptance/ and a number, and are removed.
set -u
[ $# -gt 0 ] ||
    set -- ${URL:-http://localhost:8000 http://localhost:8001 http://localhost:8002}
prefix=acceptance/$(date +%s)-$$
passed=0 failed=0

# The user's .curlrc is not for us, nor is a proxy on the way to this machine.
no_proxy=localhost,127.0.0.1,::1${no_proxy:+,$no_proxy}
export no_proxy
curl() { command curl -q -sS -m 20 "$@"; }

# step WHAT PATTERN CURL-ARGUMENTS...: the output must match the pattern, to
# the byte, and the exit code must be 0.
step() {
    what=$1 pattern=$2
    shift 2
    answer=$(curl "$@" 2>&1; echo ":$?")
    case $answer in
    $pattern:0)
        passed=$((passed + 1))
        echo "  PASS  $what"
        ;;
    *)
        failed=$((failed + 1))
        echo "  FAIL  $what"
        echo "        exit code ${answer##*:}, output '${answer%:*}'"
        ;;
    esac
}

absent() { step "$1" "" "$2"; }
present() { step "$1" "$2" "$3"; }
post() { step "$1" "2??" -X POST -d "$2" -o /dev/null -w '%{http_code}' "$3"; }
delete() { step "$1" "2??" -X DELETE -o /dev/null -w '%{http_code}' "$2"; }

for url in "$@"; do
    if ! curl -o /dev/null "${url%/}/_health"; then
        echo "no node answers at $url; make start begins three on this machine"
        exit 1
    fi >&2
done

n=0
for url in "$@"; do
    url=${url%/} n=$((n + 1))
    key=$url/$prefix/$n
    echo "$url"
    absent "GET of an absent key prints nothing" "$key"
    post "POST" "value $n" "$key"
    present "GET prints the value" "value $n" "$key"
    delete "DELETE" "$key"
    absent "GET prints nothing again" "$key"
done

n=0
[ $# = 1 ] || for writer in "$@"; do
    writer=${writer%/} n=$((n + 1))
    path=$prefix/shared$n
    echo "$writer, as the others see it"
    post "POST" "from node $n" "$writer/$path"
    for url in "$@"; do
        present "GET at $url" "from node $n" "${url%/}/$path"
    done
    delete "DELETE" "$writer/$path"
    for url in "$@"; do
        absent "GET at $url prints nothing" "${url%/}/$path"
    done
done

echo "acceptance: $passed passed, $failed failed"
if [ $failed != 0 ]; then
    # A step may have failed between a key's POST and its DELETE.
    n=$#
    while [ $n -gt 0 ]; do
        for path in $prefix/$n $prefix/shared$n; do
            curl -o /dev/null -X DELETE "${1%/}/$path" 2>/dev/null
        done
        n=$((n - 1))
    done
    exit 1
fi
