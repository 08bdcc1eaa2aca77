-- Stores each of KEYS new keys exactly once, and ends when all are answered:
--   wrk -t1 [FLAGS] -s bench/fill.lua URL -- PREFIX KEYS SIZE [PUTS [PAUSE]]
--
-- With PUTS there are that many writes, over the same keys again and again.
-- With PAUSE each connection waits so many milliseconds before what it sends.
--
-- It prints "filled CREATED REPLACED OTHERS": the answers 201, which are as
-- many as keys if all is well, 204, and the other ones. Without that line, time
-- ran out. What finds nothing left to write asks for /_health meanwhile.
--
-- A connection sends 16 requests in one piece, since otherwise the time goes
-- into system calls, on both sides: so one thread fills five times as fast.

local depth = 16

function init(args)
    local prefix, keys, size = args[1], tonumber(args[2]), tonumber(args[3])
    local puts, pause = tonumber(args[4] or keys), tonumber(args[5])
    local tail = " HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: " .. size
        .. "\r\n\r\n" .. string.rep("v", size)
    local idle = "GET /_health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    local n, created, replaced, others = -depth, 0, 0, 0
    local batch = {}

    -- wrk asks for one batch at the start that it does not send.
    function request()
        for i = 1, depth do
            batch[i] = idle
            if n >= 0 and n < puts then
                batch[i] = string.format("PUT /%s-%06d%s", prefix, n % keys,
                    tail)
            end
            n = n + 1
        end
        return table.concat(batch)
    end

    if pause then
        function delay()
            return pause
        end
    end

    function response(status)
        if status == 201 then
            created = created + 1
        elseif status == 204 then
            replaced = replaced + 1
        elseif status ~= 200 then
            others = others + 1
        end
        if created + replaced + others >= puts then
            print(string.format("filled %d %d %d", created, replaced, others))
            os.exit(0)
        end
    end
end
