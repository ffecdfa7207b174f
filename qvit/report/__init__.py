"""A page about what a folder holds, as one self-contained HTML file and as Markdown.

evidence -> sections (values) -> page -> rendering. A section is a small function in `sections/`; what a report
consists of is the list of them, as in synthesis.py.
"""

from qvit.report.latency import describe_latency
from qvit.report.sensitivity import describe_sensitivity
from qvit.report.writing import write_report

__all__ = ["describe_latency", "describe_sensitivity", "write_report"]
