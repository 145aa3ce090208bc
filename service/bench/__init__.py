"""The load generator `sid bench`: HTTP load on one server, and an honest account of its answers.

A closed loop keeps a number of connections busy and shows what a server can do; an open loop
sends on a schedule, whatever comes back, and shows what users would feel.
"""

from service.bench.load import closed, open_loop
from service.bench.report import Report
from service.bench.target import BenchError, Target, generate_body

__all__ = [
    "BenchError",
    "Report",
    "Target",
    "closed",
    "generate_body",
    "open_loop",
]
