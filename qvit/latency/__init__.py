"""How fast a model runs beside its rivals on this machine, and why.

request -> variants (what to run) -> measuring (rounds), footprint (a process each), steps and rates (why) -> verdict;
comparison holds two reports against each other; gates, the bounds that a user set.
"""

from qvit.latency.bench import bench
from qvit.latency.comparison import check_earlier, compare_reports
from qvit.latency.gates import find_missed_gate
from qvit.latency.request import Request, Subject
from qvit.latency.tables import to_csv

__all__ = [
    "Request",
    "Subject",
    "bench",
    "check_earlier",
    "compare_reports",
    "find_missed_gate",
    "to_csv",
]
