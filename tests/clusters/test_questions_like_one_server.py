"""Questions of the router on a cluster of ClickHouse: the tests of one server."""

from __future__ import annotations

from tests.integration.test_http_api import (  # noqa: F401
    client,
    clock,
    http,
    test_a_top_list_is_the_answer_to_a_question_about_totals,
    test_buckets_of_many_hours_are_summed_over_all_tiers,
    test_changes_list_the_corrected_hours_of_the_advertisers_of_the_key,
    test_no_operation_shows_another_tenants_numbers,
    test_pages_of_a_ledger_are_of_one_run,
    test_two_advertisers_with_one_campaign_id_see_their_own_counts,
)
