"""What verbs leave beside a model, and what they do not overwrite."""

import json

from qvit.cli.kept import keep_evaluation
from qvit.kept import EVALUATION


def kept(folder):
    return json.loads((folder / EVALUATION).read_text())["images"]


def test_an_evaluation_of_all_images_is_not_replaced_by_one_of_some(tmp_path):
    keep_evaluation(tmp_path, {"images": 10, "limit": 10})
    keep_evaluation(tmp_path, {"images": 20, "limit": 20})
    assert kept(tmp_path) == 20
    keep_evaluation(tmp_path, {"images": 50, "limit": None})
    keep_evaluation(tmp_path, {"images": 10, "limit": 10})
    assert kept(tmp_path) == 50
    keep_evaluation(tmp_path, {"images": 60, "limit": None})
    assert kept(tmp_path) == 60
    (tmp_path / EVALUATION).write_text("[]")
    keep_evaluation(tmp_path, {"images": 10, "limit": 10})
    assert kept(tmp_path) == 10
