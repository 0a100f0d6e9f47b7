"""Prompts to images; the names in `__init__.pyi` are imported on first use, so that reading options stays quick."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
