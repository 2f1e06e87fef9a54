"""Entry point of the build; everything it needs to know stands in pyproject.toml."""

from setuptools import setup

setup()
