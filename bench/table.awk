# Makes the table and the targets of what bench.sh has measured.
#   awk -f bench/table.awk -v hz=TICKS_A_SECOND -v memory=BYTES_A_KEY RESULTS
# Input, a line a run:
#   ROW SERVER RUN TICKS REQUESTS MICROSECONDS P50 P99 UNEXPECTED SOCKET_ERRORS
# Exits 1 if there was an unexpected answer or a socket error, else 0.

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
    floor = cpu[$1 " floor", $3]
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

function target(name, value, most, unit) {
    if (value != "")
        printf "target: %-16s at most %4.1f %s: %6.2f, %s\n", name, most,
            unit, value, value <= most ? "reached" : "missed"
}

END {
    if (rows)
        printf "\n%-7s %-6s %9s %8s %8s %8s %6s %6s %9s   %s\n", "", "",
            "req/s", "p50 ms", "p99 ms", "CPU us", "bad", "errors",
            "to floor", "[min .. max]"
    for (r = 1; r <= rows; r++) {
        k = order[r]
        split(k, name)
        printf "%-7s %-6s %9.0f %8.2f %8.2f %8.2f %6d %6d", name[1], name[2],
            median(rate, k), median(p50, k), median(p99, k), median(cpu, k),
            bad[k], errors[k]
        to_floor[k] = median(ratio, k)
        printf " %9.2f   [%.2f .. %.2f]\n", to_floor[k], list[1], list[runs[k]]
    }
    print ""
    target("GET, one node", to_floor["get one"], 1.5, "x floor")
    target("PUT, one node", to_floor["put one"], 1.7, "x floor")
    target("PUT, three nodes", to_floor["put three"], 5, "x floor")
    target("memory of a key", memory, 40, "bytes  ")
    if (wrong)
        print "WRONG: " wrong " unexpected answers or socket errors"
    exit wrong > 0
}
