"""Nothing leaves the page: the live-code extension is shut off.

Jupyter Book always loads sphinx_thebe, which names a CDN on every page and, when it is run twice,
declares its constants twice, a script error. It has no switch: its listeners are taken out.
"""


def drop_thebe(app):
    for listeners in app.events.listeners.values():
        ours = [one for one in listeners if one.handler.__module__ == "sphinx_thebe"]
        for listener in ours:
            app.disconnect(listener.id)
    app.registry.css_files[:] = [c for c in app.registry.css_files if "thebe" not in c[0]]


def setup(app):
    app.connect("builder-inited", drop_thebe, priority=0)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
