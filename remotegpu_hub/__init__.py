"""A JupyterHub extension that turns a hub into a multi-tenant GPU platform."""

__version__ = "0.1.0"
