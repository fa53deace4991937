"""Notices: rules that look at budgets, the pipeline, nightly runs and statements, and write alerts; and the worker that does so.

    facts (read) → rules (pure) → verdicts → changes (pure) → alerts (ClickHouse) → query.webhooks

One worker is active at a time (`worker`). What the stream finds unusual in numbers it writes into the same table itself. The worker
also keeps the lists of what trends (`trends`).
"""
