"""Reports: what was measured, how sure it is, how it was made, and what it means beside other runs."""

from emma.eval.report.record import Run, find_reports, find_runs, score_report, write_report
from emma.eval.report.single import as_markdown
from emma.eval.report.table import as_table

__all__ = ["Run", "as_markdown", "as_table", "find_reports", "find_runs", "score_report", "write_report"]
