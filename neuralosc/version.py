"""The version, where files can read it without the package that they belong to."""

__version__ = "0.1.0"
