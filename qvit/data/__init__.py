"""Labelled images, preprocessed as the weights expect them."""

from qvit.data.images import ImageFolder, fingerprint, open_images
from qvit.data.loading import Batches, batches
from qvit.data.preprocessing import DataConfig

__all__ = ["Batches", "DataConfig", "ImageFolder", "batches", "fingerprint", "open_images"]
