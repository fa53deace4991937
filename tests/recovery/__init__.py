"""Rehearsals of the ways back that docs/recovery.md describes."""
