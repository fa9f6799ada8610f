"""One large training run, from its file to its end, over any number of devices and processes.

`runfile` says what to train, `loop` trains it, chunk by chunk, with `parallel` over a mesh;
`checkpoint` and `recovery` keep it alive, and `runlog`, `telemetry`, `writers` and `watch` show it.
"""
