"""Rehearsals of the runbooks of docs/regions.md, and MirrorMaker 2 between two stacks."""
