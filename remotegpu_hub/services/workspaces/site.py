"""The one place where runs live, as this process knows it: its ticks and its routes ask the same."""

from functools import cache

from ... import workers
from ...runtime import Runtime


@cache
def of(runtime: Runtime) -> workers.Site:
    return workers.site_of(runtime)
