"""Started by the hub."""

from . import service

service.main()
