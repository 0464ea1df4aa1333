"""The Fréchet distance: against its formula, and on pictures."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from erase.evaluation.emoji_judge import NetworkJudge
from erase.evaluation.statistics import frechet_distance

SHIPPED = "models/emoji-flux/judge"


def test_it_is_the_formula():
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((200, 5)), rng.standard_normal((300, 5)) @ rng.random((5, 5))
    means, covs = [x.mean(0) for x in (one, other)], [np.cov(x.T) for x in (one, other)]
    root = np.real(sqrtm(covs[0] @ covs[1]))
    wanted = np.sum((means[0] - means[1]) ** 2) + np.trace(covs[0] + covs[1] - 2 * root)
    np.testing.assert_allclose(frechet_distance(one, other), wanted, rtol=1e-8)


def test_the_same_is_no_way_apart_and_a_shift_is_its_square():
    rng = np.random.default_rng(0)
    # Fewer samples than features, too.
    one = rng.standard_normal((20, 30))
    assert frechet_distance(one, one) < 1e-8
    np.testing.assert_allclose(frechet_distance(one, one + 0.5), 30 * 0.25, rtol=1e-6)


@pytest.mark.slow
def test_pictures_have_a_vector_each():
    judge = NetworkJudge.load(SHIPPED)
    pictures = np.random.default_rng(0).integers(256, size=(3, 64, 64, 3), dtype=np.uint8)
    found = judge.features(pictures)
    assert found.shape == (3, judge.config.widths[-1])
    np.testing.assert_allclose(found[1], judge.features(pictures[1:2])[0], atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3
