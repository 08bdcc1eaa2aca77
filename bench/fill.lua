-- Stores each of KEYS new keys exactly once, and ends when all are answered:
--   wrk -t1 [FLAGS] -s bench/fill.lua URL -- PREFIX KEYS SIZE
--
-- It prints "filled CREATED OTHERS": the answers 201, which are as many as
-- keys if all is well, and the other ones. Without that line, time ran out.
-- A connection that finds no key left asks for /_health meanwhile.

function init(args)
    local prefix, keys, size = args[1], tonumber(args[2]), tonumber(args[3])
    local tail = " HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: " .. size
        .. "\r\n\r\n" .. string.rep("v", size)
    local n, created, others = -2, 0, 0

    -- wrk asks for one request at the start that it does not send.
    function request()
        n = n + 1
        if n < 0 or n >= keys then
            return "GET /_health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        end
        return string.format("PUT /%s-%06d%s", prefix, n, tail)
    end

    function response(status)
        if status == 201 then
            created = created + 1
        elseif status ~= 200 then
            others = others + 1
        end
        if created + others >= keys then
            print(string.format("filled %d %d", created, others))
            os.exit(0)
        end
    end
end
