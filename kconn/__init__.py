"""How a drug changes the brain's functional connectome: from preprocessed runs to corrected p-values.

The public names are in ``__init__.pyi``; each is imported when it is first used, so that the shell starts at once.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
