-- Clients that raise one counter by compare-and-set:
--   wrk -tN -cN [FLAGS] -s bench/cas.lua URL -- KEY [PORT...]
--
-- Each thread of wrk has one connection and so is one client: it reads the
-- counter, writes what it read plus one with the etag as If-Match, and if that
-- is refused begins again with the read. Thread n loads the node at PORT n, or
-- again the first ones if there are fewer.
--
-- At the end it prints one line, which bench.sh reads:
--   cas WON LOST MICROSECONDS UNEXPECTED SOCKET_ERRORS
-- WON are the writes that were done, LOST those that were refused with 412.

-- In wrk's main state: the threads, for done().
local threads = {}

function setup(thread)
    thread:set("id", #threads)
    table.insert(threads, thread)
end

-- In a thread's state.
won, lost, unexpected = 0, 0, 0

function init(args)
    local head = " /" .. args[1] .. " HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    local read = "GET" .. head .. "\r\n"
    local etag, value

    if args[2] then
        wrk.thread.addr =
            wrk.lookup("127.0.0.1", args[2 + id % (#args - 1)])[1]
    end

    function request()
        if not etag then
            return read
        end
        return "PUT" .. head .. "If-Match: " .. etag .. "\r\nContent-Length: "
            .. #value .. "\r\n\r\n" .. value
    end

    function response(status, headers, body)
        if not etag and status == 200 then
            etag = headers["ETag"]
            value = string.format("%d", tonumber(body) + 1)
            return
        elseif etag and status == 204 then
            won = won + 1
        elseif etag and status == 412 then
            lost = lost + 1
        else
            unexpected = unexpected + 1
        end
        etag = nil
    end
end

function done(summary, latency)
    local e = summary.errors
    local won, lost, unexpected = 0, 0, 0

    for _, thread in ipairs(threads) do
        won = won + thread:get("won")
        lost = lost + thread:get("lost")
        unexpected = unexpected + thread:get("unexpected")
    end
    print(string.format("cas %d %d %d %d %d", won, lost, summary.duration,
        unexpected, e.connect + e.read + e.write + e.timeout))
end
