"""Reach: how many different users a campaign's events came from, as HyperLogLog registers that ClickHouse keeps."""
