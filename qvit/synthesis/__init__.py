"""Images made from weights alone: every method of the field in one optimisation loop, fast and resumable."""

from qvit.synthesis.folder import calibration_images
from qvit.synthesis.measures import measure
from qvit.synthesis.prediction import Estimate, estimate, fastest_precision
from qvit.synthesis.run import synthesize
from qvit.synthesis.shards import Images, open_images

__all__ = [
    "Estimate",
    "Images",
    "calibration_images",
    "estimate",
    "fastest_precision",
    "measure",
    "open_images",
    "synthesize",
]
