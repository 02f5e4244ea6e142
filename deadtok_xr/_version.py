"""The version of the package; read by the build, and by modules that must not import the package root."""

__version__ = "0.1.0"
