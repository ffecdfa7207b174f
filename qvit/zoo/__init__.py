"""Named float models: from what the user typed to a timm model with the right weights in it."""

from qvit.zoo.names import aliases, catalogue
from qvit.zoo.sources import Source, build, fetch, load, resolve

__all__ = ["Source", "aliases", "build", "catalogue", "fetch", "load", "resolve"]
