"""Tests of one server, on a cluster of two shards and two replicas: what the stream, the nightly run and the router do there is the same.

ON CLUSTER and replication are stood in for (see `tests.clusters.clickhouse_cluster`).
"""

from __future__ import annotations

from tests.integration.test_changes import (  # noqa: F401
    client,
    test_a_nightly_run_replaces_cells_and_says_why,
    test_a_window_that_closed_since_begins_with_what_it_had_then,
    test_differences_add_up_however_often_the_writer_is_killed,
)
from tests.integration.test_reconcile import (  # noqa: F401
    planted,
    test_a_run_of_an_open_day_covers_the_hours_that_had_closed,
    test_only_differences_of_closed_and_unchanged_hours_are_unexplained,
    test_the_ledger_explains_every_difference,
)
from tests.integration.test_statements import (  # noqa: F401
    test_a_month_is_issued_once_it_is_reconciled_and_again_when_a_day_is_restated,
)
from tests.integration.test_warm_tier import (  # noqa: F401
    owners,
    test_an_ousted_owners_late_write_changes_nothing,
)
