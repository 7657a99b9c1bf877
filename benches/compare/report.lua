-- For wrk: asks for the paths in the file that COMPARE_PATHS names, one after the other (each line: a path, and a
-- Range if there is one), and prints the figures as JSON, since wrk's own text rounds what it prints.

local name = os.getenv("COMPARE_PATHS")
local share = tonumber(os.getenv("COMPARE_THREADS") or "1")
local threads = 0

function setup(thread)
   thread:set("number", threads)
   threads = threads + 1
end

-- Without a file there is no request(), and wrk sends one prepared request: that is its fastest way.
if name then
   local asked, at = {}, 0

   function init()
      for line in io.lines(name) do
         local path, range = line:match("^(%S+)%s*(%S*)")
         -- wrk.format takes these headers instead of those of the command line.
         local headers = { Accept = wrk.headers.Accept, Host = wrk.headers.Host }
         if range ~= "" then headers.Range = range end
         asked[#asked + 1] = wrk.format("GET", path, headers)
      end
      at = number * math.floor(#asked / share) -- threads must not ask for the same at the same time
   end

   function request()
      at = at % #asked + 1
      return asked[at]
   end
end

function done(summary, latency)
   local e = summary.errors
   io.write(string.format(
      '\n{"requests": %d, "bytes": %.0f, "seconds": %.6f, "p50_us": %d, "p99_us": %d, "errors": %d}\n',
      summary.requests, summary.bytes, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
      e.connect + e.read + e.write + e.status + e.timeout))
end
