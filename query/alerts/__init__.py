"""Alerts as a key may see them: listed, followed, acknowledged, muted. What raises them writes `infra.clickhouse.alerts`.

Scope       which alerts a key may see                                        scope
Question    which of these are listed, from which one on                       questions
Records     versions of alerts, acknowledgements, mutes; as documents          records
Mutes       what may be muted, by whom, until when                             mutes
Position    up to where a stream has sent versions                             positions
Store       the tables in ClickHouse                                           store
Reader      pages, one alert with its history, recent versions                 reader
Summary     how many of the last ones were false                               summary
Actions     acknowledge, mute, unmute; each in the audit log                   actions
"""
