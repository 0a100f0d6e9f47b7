"""Prompts to images; what `__init__.pyi` lists is imported at its first use, so that options are quickly read."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
