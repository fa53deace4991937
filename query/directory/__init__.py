"""The directory: names and facts of advertisers, campaigns, ads and publishers. It counts nothing.

Entry      what is known of one campaign, say; checked when it is written      entries
Snapshot   the whole directory at one version, by column                        snapshot
Names      a snapshot as one key may see it, for rows of numbers                snapshot
Store      the table in ClickHouse, and its audit log                           store
Reader     the snapshot of this process, brought up to date by version          reader
Editor     changes, one batch at a time in the whole installation               editor
"""
