"""Workers: where they are, how they are reached, and what is done when they are lost, stuck or late."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
