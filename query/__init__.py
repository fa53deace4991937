"""The router: answers questions about numbers from the tiers, over HTTP.

A question on its way to an answer, one name for each step:

    Question    what a client asks, aligned to its grain: it has buckets                    question, buckets
    Piece       a part of its range, and the tier that answers it; a plan is a list         plan
    Reading     one attempt at all pieces of a plan, by the same borders                    reading, router
    TierReply   what a tier says of one piece: its sums, and how it came by them            reading, tiers/, tier_cache
    Reach       the users of rows and totals, read beside the tiers                   reach, reach_reader, reach_progress
    Sums        a table of totals: a row for each bucket and group                          sums
    Rows        the sums of all pieces with ratios and finality, in the question's order    rows
    Page        the rows that one answer shows, up to its limit                             page
    Answer      a page, and what is to be said of it: finality, watermark, warnings         router
    HttpReply   an answer in a format (formats), with its headers                           api/

A degraded range is a part of the range whose rows are missing, or may be, or are old; each has a warning. `tier`, `outcome` and
`finality` are the same words in answers, logs, metrics and traces.
"""
