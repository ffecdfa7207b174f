"""Images of the user's own, and synthetic ones beside them."""

import pytest
import torch

from qvit import synthesis
from qvit.errors import UsageError
from tests.synthesis.settings import demo, small


def make(out, **changes):
    settings = small("folder", data="demo", **changes)
    return synthesis.synthesize(demo(), settings, out, seed=5, progress=False)


def test_leaves_stand_behind_the_users_images(tmp_path):
    """A batch may hold both; of either kind there is no less."""
    alone = make(tmp_path / "alone", images=3)
    both = make(tmp_path / "both", images=6, leaves=3)
    assert (alone["images_read"], both["images_read"], both["images"]) == (3, 3, 6)
    mine, all_of_them = (
        [torch.cat(parts) for parts in zip(*synthesis.open_images(tmp_path / name), strict=True)]
        for name in ("alone", "both")
    )
    assert torch.equal(all_of_them[0][:3], mine[0])
    assert all_of_them[1].tolist() == [*mine[1].tolist(), -1, -1, -1]
    leaves = all_of_them[0][3:]
    assert leaves.std((1, 2, 3)).min() > 0.05
    assert not torch.equal(leaves[0], leaves[1])
    privacy = synthesis.open_images(tmp_path / "both").manifest["privacy"]
    assert privacy["images_read"] == 3
    assert "3 dead leaves" in privacy["statement"]


@pytest.mark.parametrize("leaves", [5, 6])
def test_leaves_alone_are_a_method_of_their_own(leaves):
    with pytest.raises(UsageError, match=r"synthesis\.leaves"):
        small("folder", data="demo", leaves=leaves)
    with pytest.raises(UsageError, match=r"synthesis\.leaves"):
        small("noise", leaves=1)
