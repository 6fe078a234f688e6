"""Started by the hub. Nothing that is loaded meanwhile is garbage, and looking for some takes a sixth of the start."""

import gc

gc.disable()

from . import service  # noqa: E402

gc.freeze()
gc.enable()
service.main()
