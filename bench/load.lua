-- The load of one row:
--   wrk [FLAGS] -s bench/load.lua URL -- OP PREFIX KEYS SIZE [PORT...]
--
-- OP       get, absent, put, delete, or mixed: ten reads to one write; or
--          get-consistent, put-consistent
-- PREFIX   keys are PREFIX-000000 and on, KEYS of them, taken at random; a
--          delete takes them in order, so that each is there the first time
-- SIZE     bytes of a value
-- PORT     one for each thread of wrk, when they are to load several nodes
--
-- At the end it prints one line, which bench.sh reads:
--   result REQUESTS MICROSECONDS P50 P99 UNEXPECTED SOCKET_ERRORS
--
-- Unexpected answers: wrk itself counts those of 400 and above, and that is
-- what get, put and mixed go by. Where a 404 is right each answer is looked
-- at here, which costs wrk several microseconds an answer: it lowers the
-- requests a second of these rows, not the server's CPU time for one.

local expected = {
    absent = { [404] = true },
    delete = { [204] = true, [404] = true },
}

-- In wrk's main state: the threads, for done().
local threads = {}

function setup(thread)
    thread:set("id", #threads)
    table.insert(threads, thread)
end

-- In a thread's state: the answers that response() did not expect.
unexpected = 0

function init(args)
    local op, prefix = args[1], args[2]
    local keys, size = tonumber(args[3]), tonumber(args[4])
    local plain = op:gsub("%-consistent$", "")
    local tail = (plain ~= op and "?consistent" or "")
        .. " HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    local body = "Content-Length: " .. size .. "\r\n\r\n"
        .. string.rep("v", size)
    local read = "GET /" .. prefix .. "-"
    local write = "PUT /" .. prefix .. "-"
    local delete = "DELETE /" .. prefix .. "-"
    local format, random = string.format, math.random
    local good = expected[op]
    local n = id * math.floor(keys / 2)

    math.randomseed(os.time() + id)
    if args[5] then
        wrk.thread.addr = wrk.lookup("127.0.0.1", args[5 + id])[1]
    end

    function request()
        n = n + 1
        if plain == "delete" then
            return delete .. format("%06d", n % keys) .. tail .. "\r\n"
        elseif plain == "put" or (plain == "mixed" and n % 11 == 0) then
            return write .. format("%06d", random(0, keys - 1)) .. tail .. body
        end
        return read .. format("%06d", random(0, keys - 1)) .. tail .. "\r\n"
    end

    if good then
        counted = true
        function response(status)
            if not good[status] then
                unexpected = unexpected + 1
            end
        end
    end
end

function done(summary, latency)
    local e = summary.errors
    local bad = 0

    for _, thread in ipairs(threads) do
        bad = bad + thread:get("unexpected")
    end
    if not threads[1]:get("counted") then
        bad = e.status
    end
    print(string.format("result %d %d %d %d %d %d", summary.requests,
        summary.duration, latency:percentile(50), latency:percentile(99),
        bad, e.connect + e.read + e.write + e.timeout))
end
