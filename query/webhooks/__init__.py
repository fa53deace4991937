"""Webhooks: alerts sent to addresses of advertisers and of the operator, signed, and at least once.

    alerts (ClickHouse) → events → queues by webhook → payload, signature → target (checked, pinned) → deliveries (ClickHouse)

`targets` says which addresses may be connected to, `sending` connects to one, `delivery` is the loop of the worker
(`query.notify.worker`). `webhooks` and `deliveries` are the tables.
"""
