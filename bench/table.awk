# Makes the table and the targets of what bench.sh has measured.
#   awk -f bench/table.awk -v hz=TICKS_A_SECOND RESULTS
# Input, a line a run, and a line a figure that is no part of the table:
#   ROW SERVER RUN TICKS REQUESTS MICROSECONDS P50 P99 UNEXPECTED SOCKET_ERRORS
#   = NAME VALUE
# Exits 1 if there was an unexpected answer or a socket error, else 0.

$1 == "=" {
    figure[$2] = $3
    next
}

{
    k = $1 " " $2
    if (!(k in runs))
        order[++rows] = k
    runs[k] = $3
    rate[k, $3] = $5 * 1e6 / $6
    cpu[k, $3] = $5 ? $4 * 1e6 / hz / $5 : 0
    p50[k, $3] = $7 / 1e3
    p99[k, $3] = $8 / 1e3
    bad[k] += $9
    errors[k] += $10
    wrong += $9 + $10
    floor = cpu[$1 ($1 ~ /-consistent$/ ? " plain" : " floor"), $3]
    ratio[k, $3] = floor ? cpu[k, $3] / floor : 0
}

# The median of what of[] has for the row k; list[] is left sorted.
function median(of, k,    i, j, n) {
    n = runs[k]
    for (i = 1; i <= n; i++) {
        for (j = i; j > 1 && list[j - 1] > of[k, i]; j--)
            list[j] = list[j - 1]
        list[j] = of[k, i]
    }
    i = int((n + 1) / 2)
    return (list[i] + list[n + 1 - i]) / 2
}

function say(name, value, bound, unit, reached) {
    printf "target: %-19s %s %-7s: %7.2f, %s\n", name, bound, unit, value,
        reached ? "reached" : "missed"
}

function at_most(name, value, most, unit) {
    if (value != "")
        say(name, value, sprintf("at most  %5.1f", most), unit, value <= most)
}

function at_least(name, value, least, unit) {
    if (value != "")
        say(name, value, sprintf("at least %5.1f", least), unit, value >= least)
}

END {
    if (rows)
        printf "\n%-14s %-6s %9s %8s %8s %8s %6s %6s %9s   %s\n", "", "",
            "req/s", "p50 ms", "p99 ms", "CPU us", "bad", "errors",
            "to floor", "[min .. max]"
    for (r = 1; r <= rows; r++) {
        k = order[r]
        split(k, name)
        printf "%-14s %-6s %9.0f %8.2f %8.2f %8.2f %6d %6d", name[1], name[2],
            median(rate, k), median(p50, k), median(p99, k), median(cpu, k),
            bad[k], errors[k]
        to_floor[k] = median(ratio, k)
        printf " %9.2f   [%.2f .. %.2f]\n", to_floor[k], list[1], list[runs[k]]
    }
    print ""
    at_most("GET, one node", to_floor["get one"], 1.5, "x floor")
    at_most("PUT, one node", to_floor["put one"], 1.7, "x floor")
    at_most("PUT, three nodes", to_floor["put three"], 5, "x floor")
    at_least("cas, 64 to 1", figure["cas"], 0.5, "times")
    at_most("traffic of a round", figure["repair-bytes"], 1, "MB")
    at_most("CPU of a round", figure["repair-cpu"], 1, "s")
    at_most("p99 of GET, join", figure["join"], 2, "times")
    at_most("bytes of a join", figure["join-bytes"], 1.1, "times")
    at_most("memory of a key", figure["start100"], 40, "bytes")
    at_most("start100", figure["start100-seconds"], 4, "seconds")
    at_least("start1k", figure["start1k-rate"], 800, "MB/s")
    at_least("sync, 64 to 1", figure["sync"], 5, "times")
    at_most("p99 of GET, compact", figure["compact"], 2, "times")
    at_most("overwrite, to live", figure["overwrite"], 3, "times")
    at_least("idle, to without", figure["idle"], 0.5, "times")
    at_most("an idle one waits", figure["idle-ms"], 20, "ms")
    at_most("p99 of GET, slow", figure["slow"], 2, "times")
    if (wrong)
        print "WRONG: " wrong " unexpected answers or socket errors"
    exit wrong > 0
}
