"""For how long published numbers stay in ClickHouse."""

from __future__ import annotations

PUBLISHED_DAYS = 735
"""Rows of days and of reconciled hours are deleted after this: the TTL of their tables (`009_retention.sql`)."""
