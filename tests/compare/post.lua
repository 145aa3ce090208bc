-- wrk: one picture a request, another seed each; the summary is one JSON line on stdout.
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local seed = 0

function request()
  seed = seed + 1
  return wrk.format(nil, nil, nil, string.format('{"class_label": %d, "seed": %d}', seed % 10, seed))
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '{"images": %d, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "errors": %d}\n',
    summary.requests - errors.status, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
