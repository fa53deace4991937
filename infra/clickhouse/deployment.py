"""Which kind of ClickHouse there is: one server, a cluster with shards and replicas, or ClickHouse Cloud. Pure.

On a cluster the rows of a table are in a table of each node, `NAME_local`; under the name itself is a table of the engine Distributed,
which statements read and write.
"""

from __future__ import annotations

from dataclasses import dataclass

from infra.settings import Settings

CLOUD = "cloud"
"""The value of the setting `clickhouse_cluster` that means ClickHouse Cloud."""
TIERED = "tiered"
LOCAL = "_local"

SHARDED = frozenset({
    "stream_hours", "stream_days", "closed_cells", "stream_reach_hours", "stream_reach_days",
    "exact_hours", "exact_days", "ledger", "exact_users", "exact_reach_hours", "exact_reach_days",
})  # fmt: skip
"""Tables whose rows are spread over shards by campaign: all rows of one key are on one shard. All other tables are on the first shard:
readers of `directory` or `alerts` follow its versions, and one insert into it has to be seen as a whole."""
MATERIALIZED = frozenset({"reach_hours_to_days", "exact_reach_hours_to_days"})
"""Materialized views, which are on each node under their own name."""


_OVERFLOW_MODES = (
    "read_overflow_mode", "read_overflow_mode_leaf", "group_by_overflow_mode", "sort_overflow_mode", "result_overflow_mode",
    "timeout_overflow_mode", "timeout_overflow_mode_leaf", "set_overflow_mode", "join_overflow_mode", "transfer_overflow_mode",
    "distinct_overflow_mode",
)  # fmt: skip
WHOLE_RESULTS = {"limit": "0", "offset": "0", "additional_result_filter": "", "additional_table_filters": "{}"}
"""No rows are left out of results beyond what a statement says."""
_AS_WRITTEN = {
    **WHOLE_RESULTS,
    # An insert is acknowledged once its rows are stored, and shards of the stream do not wait for a buffer to fill.
    "async_insert": "0",
    # Where a limit of the profile is reached, there is an error: part of the rows would be taken for all of them.
    **dict.fromkeys(_OVERFLOW_MODES, "throw"),
    # Rows of before.
    "use_query_cache": "0",
    # Rows of before within one partition alone, of which a later one is in another; or those that were deleted.
    "do_not_merge_across_partitions_select_final": "0",
    "optimize_move_to_prewhere_if_final": "0",
    "apply_deleted_mask": "1",
    # An insert whose rows a materialized view did not get is an error.
    "materialized_views_ignore_errors": "0",
    # What statements mean.
    **dict.fromkeys(
        ("aggregate_functions_null_for_empty", "data_type_default_nullable", "empty_result_for_aggregation_by_empty_set", "final",
         "group_by_use_nulls", "join_use_nulls", "prefer_column_name_to_alias", "transform_null_in"),
        "0",
    ),
    "enable_positional_arguments": "1",
    "join_default_strictness": "ALL",
    "session_timezone": "UTC",
    # Digests are of the text of rows.
    "date_time_output_format": "simple",
}  # fmt: skip
"""Settings that a user's profile may have, and that would change what is written or answered."""


@dataclass(frozen=True)
class Deployment:
    """`cluster`: the name of a cluster in `remote_servers`, CLOUD, or empty for one server. `storage_policy`: of the large tables; empty
    for none."""

    cluster: str = ""
    storage_policy: str = TIERED

    @staticmethod
    def of(settings: Settings) -> Deployment:
        """The one that settings name."""
        return Deployment(settings.clickhouse_cluster, settings.clickhouse_storage_policy)

    @property
    def is_cloud(self) -> bool:
        """Whether it is ClickHouse Cloud."""
        return self.cluster == CLOUD

    @property
    def is_cluster(self) -> bool:
        """Whether statements name a cluster."""
        return bool(self.cluster) and not self.is_cloud

    @property
    def policy(self) -> str:
        """The storage policy that tables name; empty for none."""
        return "" if self.is_cloud else self.storage_policy

    def stored(self, table: str) -> str:
        """The table that has the rows of `table`, whose UUID changes when they are gone."""
        return f"{table}{LOCAL}" if self.is_cluster and table not in MATERIALIZED else table

    def settings(self) -> dict[str, str]:
        """Settings of each statement."""
        if self.is_cloud:
            return _AS_WRITTEN | {
                "select_sequential_consistency": "1",
                "insert_deduplicate": "0",
                # Rows that were inserted just now.
                "ignore_cold_parts_seconds": "0",
            }
        if not self.is_cluster:
            return _AS_WRITTEN
        return _AS_WRITTEN | {
            # An insert is acknowledged once each shard has its rows.
            "distributed_foreground_insert": "1",
            # INSERT … SELECT goes through the same path as any other insert, not from each node to itself.
            "parallel_distributed_insert_select": "0",
            # A retry is made harmless by keys and versions. Deduplicated by its block, it would be left out of materialized views too,
            # also where the first attempt ended before it reached them.
            "insert_deduplicate": "0",
            "insert_quorum_timeout": "60000",
            # Subqueries in IN and JOIN are about all shards.
            "distributed_product_mode": "global",
            # A profile may have it: sums without a shard would be taken for the whole.
            "skip_unavailable_shards": "0",
            "distributed_ddl_task_timeout": "60",
            # A statement that a node has not carried out is an error.
            "distributed_ddl_output_mode": "throw",
            # Rows of a key are summed over all shards, and each shard is asked.
            "distributed_group_by_no_merge": "0",
            # Each replica that is asked would answer with part of its shard's rows.
            "max_parallel_replicas": "1",
            # All rows of a key are on the shard of their campaign.
            "insert_shard_id": "0",
        }

    def placement(self, table: str) -> str:
        """The sharding key of a table on a cluster."""
        return "intHash64(campaign_id)" if table in SHARDED else "0"


ONE_SERVER = Deployment()
