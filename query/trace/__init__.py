"""Follows one event through the pipeline: `adclick trace`.

places (gather.py) → judged messages (verdicts.py) → windows, runs and statements (windows.py, billing.py) → report (report.py)
"""
