-- wrk script: bodies from a file, one a line, in turn; counts answers by kind; prints one JSON object.
--   wrk ... -s closed_loop.lua URL -- BODIES

local threads = {}

function setup(thread)
   table.insert(threads, thread)
end

function init(args)
   requests, turn = {}, 0
   good, degraded, refused, failed = 0, 0, 0, 0
   local headers = {["Content-Type"] = "application/json"}
   for body in io.lines(args[1]) do
      table.insert(requests, wrk.format("POST", nil, headers, body))
   end
end

function request()
   turn = turn % #requests + 1
   return requests[turn]
end

function response(status, headers, body)
   if status == 200 then
      if string.find(body, '"degraded":"', 1, true) then degraded = degraded + 1 else good = good + 1 end
   elseif status == 429 or status == 503 then
      refused = refused + 1
   else
      failed = failed + 1
   end
end

function done(summary, latency, requests)
   local counts = {good = 0, degraded = 0, refused = 0, failed = 0}
   for _, thread in ipairs(threads) do
      for name in pairs(counts) do counts[name] = counts[name] + thread:get(name) end
   end
   local seconds = summary.duration / 1e6
   local lost = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
   io.write(string.format(
      '{"good": %.3f, "degraded": %.3f, "refused": %.3f, "errors": %d, ' ..
      '"p50_ms": %.3f, "p90_ms": %.3f, "p99_ms": %.3f}\n',
      counts.good / seconds, counts.degraded / seconds, counts.refused / seconds, counts.failed + lost,
      latency:percentile(50) / 1e3, latency:percentile(90) / 1e3, latency:percentile(99) / 1e3))
end
