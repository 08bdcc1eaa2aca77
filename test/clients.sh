#!/bin/sh
# clients.sh [NAME ...] - the programs that people use, with real nodes.
#
# Three nodes of $ESTORAJE on loopback addresses of their own (127.X.Y.N is
# node N). Each part below is one program: what it stores is compared byte by
# byte, mostly by way of another node, and no error of any kind is taken. A
# program that is not installed is skipped with a word. The balancers are those
# of README.md, with our addresses in place of its own.
#
# The last parts stop and kill a node behind them. No process and no file is
# left; KEEP=1 keeps the directory of a run that failed, with all logs.
#
# shellcheck disable=SC2002,SC2013,SC2015,SC2046,SC2086,SC2317
set -u
cd "$(dirname "$0")/.." || exit 1
PATH=$PATH:/usr/sbin:/sbin
all="curl wget wrk ab h2load python3 node haproxy nginx caddy stopped killed"

# Proxies and the user's .curlrc are not for us.
no_proxy='*'
export no_proxy
curl() { command curl -q -sS -m 30 "$@" 2>>"$dir/curl.log"; }

# ---------------------------------------------------------------------------
# Small tools
# ---------------------------------------------------------------------------

fail() {
    printf 'FAIL  %s: %s\n' "$part" "$*"
    tail -n 3 "$dir/curl.log"
    grep -h -A 30 'Sanitizer\|runtime error' "$dir"/n?.log
    exit 1
}

# is WHAT WANTED GOT
is() { [ "$2" = "$3" ] || fail "$1: '$3' instead of '$2'"; }

# is_file WHAT GOT [WANTED]
is_file() { cmp -s "${3-$dir/big}" "$2" || fail "$1: other bytes"; }

# within SECONDS WHAT COMMAND...: tries until the command succeeds.
within() {
    limit=$(($(date +%s) + $1)) what="$2 after $1 s"
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$(date +%s)" -lt $limit ] || fail "not $what"
        sleep 0.1
    done
}

# status ARGUMENT...: of curl; what it answers, the body aside.
status() { curl -o /dev/null -w '%{http_code}' "$@"; }

# counted: how often each line comes.
counted() { sort | uniq -c | xargs; }

# has NAME VALUE ARGUMENT...: is there such a field in the answer?
has() {
    field=$1 value=$2
    shift 2
    curl -o /dev/null -D - "$@" | tr -d '\r' >"$dir/head"
    grep -qix "$field: $value" "$dir/head" ||
        fail "no '$field: $value': $(cat "$dir/head")"
}

# ---------------------------------------------------------------------------
# Nodes, and what else runs. NAME has the log NAME.log, and its pid in NAME.pid.
# ---------------------------------------------------------------------------

address() { echo "$net.$1"; }
api() { echo "http://$(address "$1"):18000"; }
pid() { cat "$dir/$1.pid"; }

# begin NAME COMMAND...: in the background.
begin() {
    name=$1
    shift
    "$@" </dev/null >"$dir/$name.log" 2>&1 &
    echo $! >"$dir/$name.pid"
}

start() {
    peers=n1=http://$(address 1):12380,n2=http://$(address 2):12380
    begin "n$1" "$ESTORAJE" -name "n$1" -host "$(address "$1")" -port 18000 \
        -peerPort 19000 -dataPath "$dir/n$1" -partitions 64 \
        -initialCluster "$peers,n3=http://$(address 3):12380"
}

# ready: each node is, and hears the others.
ready() {
    for n in 1 2 3; do
        within 60 "n$n is ready" hears_all "$n"
    done
}
hears_all() { [ "$(curl -f "$(api "$1")/_ready")" = ready ]; }

# Nodes leave a mark of their last end in shared memory, under their ids.
unmark() {
    for id in $(sed 's/"id":"/\n&/g' "$dir"/n[0-9]/ring 2>/dev/null |
        sed -n 's/^"id":"\([0-9a-f]*\)".*/\1/p' | sort -u); do
        rm -f "/dev/shm/estoraje-$id"-*
    done
}

# Ends what was begun: the nodes first, and with them their etcds.
clean() {
    code=$?
    trap '' INT TERM HUP
    for file in "$dir"/*.pid; do
        [ -e "$file" ] || continue
        kill -9 "$(cat "$file")" 2>/dev/null
        wait "$(cat "$file")" 2>/dev/null
    done
    limit=$(($(date +%s) + 60))
    while [ -n "$(left)" ] && [ "$(date +%s)" -lt $limit ]; do
        sleep 0.1
    done
    for p in $(left); do
        echo "FAIL  left: $(tr '\0' ' ' <"/proc/$p/cmdline")"
        kill -9 "$p"
        code=1
    done
    unmark
    if [ $code != 0 ] && [ -n "${KEEP-}" ]; then
        echo "kept: $dir"
    else
        rm -rf "$dir"
    fi
    exit $code
}
left() {
    for p in $(grep -lsF "$dir/" /proc/[0-9]*/cmdline); do
        case $(tr '\0' ' ' 2>/dev/null <"$p") in
        '' | grep*) ;;
        *) echo "$p" | cut -d / -f 3 ;;
        esac
    done
}

# ---------------------------------------------------------------------------
# Clients
# ---------------------------------------------------------------------------

use_curl() {
    url=$(api 1)/curl other=$(api 2)/curl

    # Uploads and downloads; a body so large is sent after 100 Continue.
    is "-T FILE" 201 "$(status -T "$dir/big" "$url/big")"
    got "$other/big"
    is "-T - of a pipe" 204 "$(cat "$dir/big" | status -T - "$url/big")"
    got "$other/big"
    is "--data-binary" 204 "$(status --data-binary "@$dir/big" "$url/big")"
    got "$other/big" --compressed --tr-encoding --http2 -u user:password
    is "-F" 201 "$(status -F "file=@$dir/small" "$url/form")"
    has Content-Type 'multipart/form-data; boundary=.*' "$url/form"
    is "HTTP/1.0 -T" 201 "$(status -0 -T "$dir/big" "$url/old")"
    got "$other/old" -0
    head -c 7654321 "$dir/big" >"$dir/got"
    is "-C -" 206 "$(curl -C - -o "$dir/got" -w '%{http_code}' "$url/big")"
    is_file "-C -" "$dir/got"
    curl -C - -o "$dir/got" "$url/big" || fail "-C - of all: $?"
    is_file "-C - of all" "$dir/got"

    # An upload cannot be resumed: what is left must not replace the whole.
    is "-C N -T" 400 "$(status -C 7654321 -T "$dir/big" "$url/big")"
    got "$url/big"

    # What a node tells of itself is true: each line of its help can be run.
    curl "$(api 1)/" | sed -n 's/^  \(curl .*\)   .*/\1/p' >"$dir/help"
    is "lines of help" 17 "$(wc -l <"$dir/help" | xargs)"
    cp "$dir/small" "$dir/FILE"
    while read -r line; do
        (cd "$dir" && eval "$line -f" >/dev/null) || fail "$line"
    done <"$dir/help"
    is_file "help's file" "$dir/file" "$dir/small"

    # 100 Continue comes; a client that does not wait for it is served, too.
    is "Expect" 201 "$(status -m 25 --expect100-timeout 30 -T "$dir/small" \
        -H 'Expect: 100-continue' "$url/expect")"
    is "-d, Expect" 204 "$(status --expect100-timeout 0.001 \
        -d @"$dir/small" -H 'Expect: 100-continue' "$url/expect")"
    truncate -s 65M "$dir/huge"
    is "413, nothing sent" '413 0' "$(curl -T "$dir/huge" -o /dev/null \
        --expect100-timeout 25 -w '%{http_code} %{size_upload}' "$url/huge")"
    is "413 though it is sent" 413 \
        "$(status -H Expect: -T "$dir/huge" "$url/huge")"
    is "413 to a pipe" 413 "$(cat "$dir/huge" | status -T - "$url/huge")"

    # Small things.
    is "-d" 201 "$(status -d 'a value' "$url/k")"
    is "its value" 'a value' "$(curl "$other/k")"
    has Content-Type application/octet-stream "$other/k"
    is "-X POST" 201 "$(status -X POST "$url/empty")"
    is "an empty value" '200 0' \
        "$(curl -w '%{http_code} %{size_download}' "$other/empty")"
    is "chunked -d" 204 "$(status -X PUT -d chunks \
        -H 'Transfer-Encoding: chunked' -H 'Content-Type: text/x' "$url/k")"
    is "its value" chunks "$(curl "$other/k")"
    has Content-Type text/x -I "$other/k"
    has Content-Length 6 -I "$other/k"
    is "-I of an absent key" 404 "$(status -I "$url/absent")"
    is "-r 1-3" hun206 "$(curl -w '%{http_code}' -r 1-3 "$url/k")"
    is "-r -2" ks "$(curl -r -2 "$url/k")"
    is "-r 4-" ks "$(curl -r 4- "$url/k")"
    is "-r 0-0,2-3" chunks "$(curl -r 0-0,2-3 "$url/k")"
    is "-r 6-" 416 "$(status -r 6- "$url/k")"
    is "-z" 200 "$(status -z 'Tue, 01 Jan 2030 00:00:00 GMT' "$url/k")"
    curl -o "$dir/got" --etag-save "$dir/etag" "$url/k"
    is "--etag-compare" 304 "$(status --etag-compare "$dir/etag" "$other/k")"
    is "If-Match" 204 \
        "$(status -T "$dir/small" -H "If-Match: $(cat "$dir/etag")" "$url/k")"
    is "If-Match again" 412 \
        "$(status -T "$dir/small" -H "If-Match: $(cat "$dir/etag")" "$url/k")"
    is "--etag-compare" 200 "$(status --etag-compare "$dir/etag" "$other/k")"
    is "If-None-Match: *" 412 \
        "$(status -T "$dir/small" -H 'If-None-Match: *' "$url/k")"
    is "DELETE" 204 "$(status -X DELETE "$url/k")"
    is "DELETE again" 404 "$(status -X DELETE "$other/k")"

    # Many at once, and many by one connection.
    is "-Z, written" "60 201" "$(curl -Z --parallel-max 20 -T "$dir/small" \
        -w '%{http_code}\n' "$url/z[1-60]" | counted)"
    curl -Z --parallel-max 20 -o "$dir/z#1" "$other/z[1-60]" || fail "-Z: $?"
    for n in 1 31 60; do
        is_file "-Z" "$dir/z$n" "$dir/small"
    done
    is "-Z, large" "2 8388608" "$(curl -Z -w '%{size_download}\n' \
        -o /dev/null "$url/{big,old}" | counted)"
    once="-sS -o /dev/null -w %{num_connects}\\n"
    is "connections" "1 1" "$(curl $once "$url/z[1-9]" \
        --next $once -T "$dir/big" "$url/big" \
        --next $once -I "$url/absent" \
        --next $once -d @"$dir/small" "$url/n" \
        --next $once -X DELETE "$url/n" \
        --next $once "$url/big" | grep -v 0 | counted)"

    # Every line of a list can follow a slash.
    for key in %5Fa a%20b 100%25 %C3%A9 a%2Fb/%2F/ %00%0A ..//./; do
        is "$key" 201 "$(status --path-as-is -d "$key" "$url/odd/$key")"
    done
    curl -G -d list -d limit=10000 -d prefix=curl/odd/ -D "$dir/head" \
        "$(api 2)/" >"$dir/keys"
    while next=$(sed -n 's/^link: <\(.*\)>; rel="next".*/\1/Ip' "$dir/head") &&
        [ -n "$next" ]; do
        curl -D "$dir/head" "$(api 2)$next" >>"$dir/keys"
    done
    is "keys listed" 7 "$(wc -l <"$dir/keys" | xargs)"
    while read -r key; do
        is "$key" 200 "$(status --path-as-is "$(api 3)/$key")"
    done <"$dir/keys"
}

# got URL ARGUMENT...: the large value, which is all that the key ever had. An
# owner to which it takes half a second longer than to the others has it later
# than the client has the answer.
got() {
    limit=$(($(date +%s) + 10))
    rm -f "$dir/got"
    until [ -s "$dir/got" ] || [ "$(date +%s)" -gt $limit ]; do
        curl -o "$dir/got" "$@" || fail "GET: $?"
    done
    is_file "GET $*" "$dir/got"
}

use_wget() {
    url=$(api 1)/wget
    w() {
        wget -q --no-config --no-proxy -T 20 -t 1 "$@" || fail "wget $*: $?"
    }
    w -O /dev/null --post-file="$dir/big" "$url"
    head -c 1234567 "$dir/big" >"$dir/got"
    w -c -O "$dir/got" "$url"
    is_file "-c" "$dir/got"
    w --spider "$url"
    w -O /dev/null --method=PUT --body-data=other "$url"
    w -O "$dir/got" "$url" "$url"
    is "two in one" otherother "$(cat "$dir/got")"
    w -O /dev/null --method=DELETE "$url"
}

use_wrk() {
    is "PUT" "20 201" "$(curl -T "$dir/small" -o /dev/null \
        -w '%{http_code}\n' "$(api 1)/mixed-[000000-000019]" | counted)"
    for op in mixed absent; do
        wrk -t2 -c20 -d1s --timeout 30s -s bench/load.lua "$(api 1)" -- $op $op 20 1000 \
            >"$dir/got" 2>&1 || fail "$(cat "$dir/got")"
        is "$op: errors" "0 0" "$(awk '/^result/ { print $6, $7 }' "$dir/got")"
    done
}

use_ab() {
    is "PUT" 201 "$(status -T "$dir/small" "$(api 1)/ab")"
    for how in "-k" "" "-k -i" "-k -u $dir/small -T text/x" "-p $dir/small"; do
        ab -q -n 1000 -c 20 $how "$(api 1)/ab" >"$dir/got" 2>&1 ||
            fail "$how: $(cat "$dir/got")"
        for line in 'Complete requests: *1000' 'Failed requests: *0'; do
            grep -qx "$line" "$dir/got" || fail "$how: $(cat "$dir/got")"
        done
        grep -q 'Non-2xx' "$dir/got" && fail "$how: $(cat "$dir/got")"
        case $how in
        -k*) grep -qx 'Keep-Alive requests: *1000' "$dir/got" ||
            fail "$how: $(cat "$dir/got")" ;;
        esac
    done
}

use_h2load() {
    is "PUT" 201 "$(status -T "$dir/small" "$(api 1)/h2load")"
    for how in "-m 1" "-m 8" "-d $dir/small"; do
        h2load --h1 -n 2000 -c 20 $how "$(api 1)/h2load" \
            >"$dir/got" 2>&1 || fail "$how: $(cat "$dir/got")"
        grep -q ' 2000 succeeded, 0 failed, 0 errored, 0 timeout' "$dir/got" &&
            grep -q 'status codes: 2000 2xx' "$dir/got" ||
            fail "$how: $(cat "$dir/got")"
    done
}

use_python3() {
    python3 - "$(address 1):18000" "$(address 2):18000" "$dir/big" \
        >"$dir/got" 2>&1 <<'END' || fail "$(cat "$dir/got")"
import http.client, io, sys, time, urllib.error, urllib.parse, urllib.request

one, other, path = sys.argv[1:]
with open(path, "rb") as f:
    big = f.read()
c = http.client.HTTPConnection(one, timeout=20)
d = http.client.HTTPConnection(other, timeout=20)

# An owner may be late, as for got in the shell: not yet is asked again.
def ask(c, status, method, target, body=None, headers={}):
    until = time.monotonic() + 10
    while True:
        had = c.sock
        c.request(method, target, body, headers)
        assert had is None or c.sock is had, "the connection was closed"
        r = c.getresponse()
        value = r.read()
        if (r.status, status) != (404, 200) or time.monotonic() > until:
            break
    assert r.status == status, (method, target, r.status, value[:200])
    assert not r.will_close, (method, target)
    return r, value

def pieces():
    for at in range(0, len(big), 54321):
        yield big[at:at + 54321]

part = big[:1 << 20]
for body, sent in [(part, part), (pieces(), big), (io.BytesIO(part), part)]:
    ask(c, 201, "PUT", "/python", body, {"Expect": "100-continue"})
    assert ask(d, 200, "GET", "/python")[1] == sent
    r, value = ask(d, 206, "GET", "/python", None, {"Range": "bytes=9-99999"})
    assert value == sent[9:100000]
    r, value = ask(d, 200, "HEAD", "/python")
    assert r.getheader("Content-Length") == str(len(sent)) and value == b""
    tag = {"If-None-Match": r.getheader("ETag")}
    assert ask(d, 304, "GET", "/python", None, tag)[1] == b""
    ask(c, 204, "DELETE", "/python")
    assert ask(d, 404, "GET", "/python")[1] == b""
    ask(c, 404, "DELETE", "/python")
for n in range(200):
    ask(c, 201, "POST", "/python/%d" % n, b"%d" % n)
    assert ask(c, 200, "GET", "/python/%d" % n)[1] == b"%d" % n

# urllib closes each connection.
key = urllib.parse.quote("python/\u043a\u043b\u044e\u0447 %_+\u00fc")
url = "http://" + one + "/" + key
urllib.request.urlopen(url, b"form", timeout=20)
r = urllib.request.urlopen("http://" + other + "/" + key, timeout=20)
assert r.read() == b"form"
assert r.headers["Content-Type"] == "application/octet-stream"
r = urllib.request.Request(url, open(path, "rb"), method="PUT")
assert urllib.request.urlopen(r, timeout=20).status == 204
assert urllib.request.urlopen(url, timeout=20).read() == big
r = urllib.request.Request(url, method="DELETE")
assert urllib.request.urlopen(r, timeout=20).status == 204
try:
    urllib.request.urlopen(url, timeout=20)
    assert False, "not 404"
except urllib.error.HTTPError as e:
    assert e.code == 404 and e.read() == b""
END
}

use_node() {
    node - "$(api 1)" "$(api 2)" "$dir/big" \
        >"$dir/got" 2>&1 <<'END' || fail "$(cat "$dir/got")"
const assert = require("assert"), fs = require("fs"), http = require("http");
const [one, other, path] = process.argv.slice(2);
const big = fs.readFileSync(path);
const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
let connections = 0;
const connect = agent.createConnection;
agent.createConnection = (...a) => {
    connections++;
    return connect.call(agent, ...a);
};

// body is sent by send(request): at once, or in chunks. An owner may be late, as
// for got in the shell: not yet is asked again.
function ask(status, method, url, send = (r) => r.end(), headers = {},
    until = Date.now() + 10000) {
    return new Promise((done, failed) => {
        const r = http.request(url, { method, headers, agent }, (answer) => {
            const parts = [];
            answer.on("data", (p) => parts.push(p));
            answer.on("error", failed);
            answer.on("end", () => {
                const body = Buffer.concat(parts);
                if (answer.statusCode === status)
                    done({ headers: answer.headers, body });
                else if (answer.statusCode === 404 && status === 200 &&
                    Date.now() < until)
                    ask(status, method, url, send, headers, until)
                        .then(done, failed);
                else
                    failed(`${method} ${url}: ${answer.statusCode} ${body}`);
            });
        });
        r.on("error", failed);
        send(r);
    });
}

async function all() {
    const part = big.subarray(0, 1 << 20);
    const ways = [
        [part, (r) => r.end(part)],
        [big, (r) => fs.createReadStream(path).pipe(r)],
        [part, (r) => r.on("continue", () => r.end(part)),
            { Expect: "100-continue" }],
    ];
    for (const [sent, send, headers] of ways) {
        await ask(201, "PUT", one + "/node", send, headers);
        const got = await ask(200, "GET", other + "/node");
        assert(got.body.equals(sent));
        const head = await ask(200, "HEAD", other + "/node");
        assert.equal(head.headers["content-length"], String(sent.length));
        await ask(304, "GET", other + "/node", undefined,
            { "If-None-Match": head.headers.etag });
        await ask(204, "DELETE", one + "/node");
        await ask(404, "GET", other + "/node");
    }
    const many = Array.from({ length: 300 }, (_, n) => `${one}/node/${n}`);
    connections = 0;
    await Promise.all(many.map((u) => ask(201, "POST", u, (r) => r.end(u))));
    const got = await Promise.all(many.map((u) => ask(200, "GET", u)));
    got.forEach((g, n) => assert.equal(String(g.body), many[n]));
    assert(connections <= 4, `${connections} connections`);
    if (globalThis.fetch) {
        const body = new ReadableStream({
            start(c) { c.enqueue(part); c.close(); },
        });
        const put = await fetch(one + "/node/f",
            { method: "PUT", body, duplex: "half" });
        assert.equal(put.status, 201);
        const get = await fetch(other + "/node/f");
        assert(Buffer.from(await get.arrayBuffer()).equals(part));
    }
}
all().then(() => process.exit(0), (e) => {
    console.error(e);
    process.exit(1);
});
END
}

# ---------------------------------------------------------------------------
# Balancers
# ---------------------------------------------------------------------------

# snippet NAME PORT: what README.md gives for it, with our addresses.
snippet() {
    awk -v name="(^| )$1[:,]" '
        begun && /^    /        { print; next }
        begun && !/^$/          { exit }
        /:$/ && $0 ~ name       { begun = 1 }' README.md |
        sed -e "s/10\.0\.0\.\([1-3]\):8000/$net.\1:18000/g" \
            -e "s/bind :80$/bind $(address 9):$2/" \
            -e "s/listen 80;/listen $(address 9):$2;/" \
            -e "s/^ *:80 {/:$2 {/"
}

use_haproxy() {
    snippet haproxy 18081 >"$dir/haproxy.cfg"
    begin haproxy haproxy -db -f "$dir/haproxy.cfg"
    behind 18081
}

use_nginx() {
    cat >"$dir/nginx.cfg" <<END
daemon off;
master_process off;
pid $dir/nginx.own;
error_log stderr;
events { }
http {
    access_log off;
    client_body_temp_path $dir/nginx-1;
    proxy_temp_path $dir/nginx-2;
    fastcgi_temp_path $dir/nginx-3;
    uwsgi_temp_path $dir/nginx-4;
    scgi_temp_path $dir/nginx-5;
$(snippet nginx 18082)
}
END
    begin nginx nginx -p "$dir" -e stderr -c "$dir/nginx.cfg"
    behind 18082
}

use_caddy() {
    cat >"$dir/Caddyfile" <<END
{
    admin off
    default_bind $(address 9)
}
$(snippet Caddy 18083)
END
    begin caddy env HOME="$dir" XDG_DATA_HOME="$dir" XDG_CONFIG_HOME="$dir" \
        caddy run --adapter caddyfile --config "$dir/Caddyfile"
    behind 18083
}

# sockets: how many connections with our nodes there are, or were just now.
sockets() {
    grep -c " $hex:4650 [0-9A-F]" /proc/net/tcp
}

# behind PORT: a balancer in front of the three nodes.
behind() {
    url=http://$(address 9):$1
    within 60 "answered through it" curl -f "$url/_ready"
    balancers="$balancers $part:$1"

    is "-T FILE" 201 "$(status -T "$dir/big" "$url/$part")"
    got "$(api 1)/$part"
    is "-T - of a pipe" 204 "$(cat "$dir/big" | status -T - "$url/$part")"
    got "$url/$part"
    has Content-Length 8388608 -I "$url/$part"
    is "a range" 'bytes 1-3/8388608' "$(curl -r 1-3 -o /dev/null -D - \
        "$url/$part" | tr -d '\r' | sed -n 's/^content-range: //Ip')"
    curl -I -o "$dir/got" --etag-save "$dir/etag" "$url/$part"
    is "304" 304 "$(status --etag-compare "$dir/etag" "$url/$part")"
    is "412" 412 "$(status -d x -H 'If-None-Match: *' "$url/$part")"
    is "-0" 200 "$(status -0 "$url/$part")"
    is "DELETE" 204 "$(status -X DELETE "$url/$part")"
    is "DELETE again" 404 "$(status -X DELETE "$url/$part")"
    is "GET" 404 "$(status "$url/$part")"
    is "HEAD" 404 "$(status -I "$url/$part")"
    is "no name of the system's" 403 "$(status -T "$dir/small" "$url/_no")"

    # Keys are what they are without it.
    for key in $part%2Fa/b "%5F$part" "$part%20a" "$part%25" "$part%252F" \
        "$part%C3%A9" "$part%3Fa" "$part%23" "$part+a" "$part%FF" "%2F$part"; do
        is "PUT of $key" 201 "$(status -X PUT -d "$key" "$url/$key")"
        is "$key on n1" "$key" "$(curl "$(api 1)/$key")"
        is "$key" "$key" "$(curl "$url/$key")"
    done

    # One connection for many requests, on both sides; a balancer's own checks
    # make some more in the time that it takes.
    before=$(sockets)
    is "many" "400 201" "$(curl -o /dev/null -w '%{http_code}\n' \
        -T "$dir/small" "$url/${part}[1-400]" | counted)"
    after=$(sockets)
    [ $((after - before)) -le 100 ] ||
        fail "$((after - before)) connections to nodes for 400 requests"
}

# A node ends behind them, while there are reads: not one of them fails.
use_stopped() {
    curl -T "$dir/small" -o /dev/null "$(api 1)/get-[000000-000019]"
    for part in $balancers; do
        begin "$part" wrk -t1 -c4 -d2s --timeout 30s -s bench/load.lua \
            "http://$(address 9):${part#*:}" -- get get 20 1000
    done
    sleep 0.7
    kill "$(pid n2)"
    wait "$(pid n2)" || fail "n2 ends with $?"
    for part in $balancers; do
        wait "$(pid "$part")"
        is "failed" "0 0" \
            "$(awk '/^result/ { print $6, $7 }' "$dir/$part.log")"
    done
    start 2
    ready
}

# A node dies behind all of them: no read fails, even at first, and soon no
# write. (Caddy does not send a body to a second node.)
use_killed() {
    is "PUT" 201 "$(status -T "$dir/small" "$(api 1)/killed")"
    kill -9 "$(pid n3)"
    wait "$(pid n3)" 2>/dev/null
    for part in $balancers; do
        url=http://$(address 9):${part#*:}
        is "reads" "60 200" "$(curl -o /dev/null -w '%{http_code}\n' \
            "$url/killed#[1-60]" | counted)"
    done
    for part in $balancers; do
        url=http://$(address 9):${part#*:}
        within 60 "taken out" writes 20
        writes 60 || fail "writes: $codes"
    done
}
writes() {
    codes=$(curl -T "$dir/small" -o /dev/null -w '%{http_code}\n' \
        "$url/killed[1-$1]" | grep -v '^20[14]' | counted)
    [ -z "$codes" ]
}

# ---------------------------------------------------------------------------
# Running them
# ---------------------------------------------------------------------------

[ $# -gt 0 ] || set -- $all
: "${ESTORAJE:=./build/asan/estoraje}"
part=nodes balancers=
a=$(($$ / 250 % 250 + 1)) b=$(($$ % 250 + 1))
net=127.$a.$b hex=$(printf '0[1-3]%02X%02X7F' $b $a)
dir=$(mktemp -d "${TMPDIR:-/tmp}/clients.XXXXXX") || exit 1
trap clean EXIT
trap 'exit 130' INT TERM HUP
head -c 8388608 /dev/urandom >"$dir/big"
head -c 1000 /dev/urandom >"$dir/small"
for n in 1 2 3; do
    start $n
done
ready
: >"$dir/curl.log"
used=0 skipped=
for part in "$@"; do
    case $part in
    stopped) program=wrk ;;
    killed) program='sh' ;;
    *) program=$part ;;
    esac
    if command -v $program >/dev/null; then
        "use_$part"
        used=$((used + 1))
    else
        skipped="$skipped $part"
    fi
done
part=end
for n in n1 n2 n3; do
    kill -0 "$(pid $n)" 2>/dev/null || continue
    kill "$(pid $n)"
    wait "$(pid $n)" || fail "$n ends with $?: $(tail -n 5 "$dir/$n.log")"
done
echo "clients: $used passed${skipped:+, not installed:$skipped}"
