"""Experiments: many small runs and other measurements, their records, claims, tables and figures.

A `study` makes what its `design` wants and its `records` lack, in this process, on several cores or
through an `executor` on a cluster. `tables` turns records into tidy frames, `claims` judges them,
and `figures` and `report` show them.
"""
