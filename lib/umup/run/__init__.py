"""One big run, from its file to its end, over as many devices and processes as it is given.

`runfile` says what to train, `loop` trains it, chunk by chunk, with `parallel` over a mesh;
`checkpoint` and `recovery` keep it alive, and `runlog`, `telemetry`, `writers` and `watch` show it.
"""
