from importlib.util import find_spec

if all(map(find_spec, ("starlette", "uvicorn", "prometheus_client"))):  # the extra `serve`
    from live_server import engine, live, prompt, slow, subject  # noqa: F401
