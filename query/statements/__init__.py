"""Statements: what an advertiser is billed for a month.

`contents` has what a statement says, as values; `store` keeps those that were issued; `reader` decides which one a month has.
"""
