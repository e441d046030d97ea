from .connecting import connect as connect
from .connecting import cores as cores
