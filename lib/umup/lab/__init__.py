"""Experiments: many small runs and other measurements, their records, claims, tables and figures.

A `study` makes what its `design` wants and its `records` lack, in this process, over cores or by an
`executor` over a cluster; `tables` turns records into tidy frames, `claims` judges them, `figures`
and `report` show them.
"""
