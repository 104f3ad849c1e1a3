"""The scale of latents: what is asked for, what is said of it, and what is noticed."""

import re

import numpy as np
import pytest
from recommend_points import exact_curve, pca_candidate, spectrum

from ldmjax.recommendation import RecommendationConfig, compare, scales
from ldmjax.recommendation.scales import Scaling

ALL = Scaling()


def normal(*shape, seed=6):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def described(z, scaling=ALL):
    return scales.describe("z", z, scaling, scales.scale_of(z, scaling))


def test_scale_sentences():
    wide = normal(500, 3) * np.float32([1.0, 5.0, 9.0]) + 2
    std, mean = wide.std(), wide.mean()
    scale = scales.scale_of(wide, ALL)
    assert (scale.mean, scale.std) == pytest.approx((mean, std), rel=1e-5)
    text = described(wide)
    assert f"z: 3 latent entries, mean {mean:.3g}, standard deviation {std:.3g}" in text
    assert "train the diffusion model so too" in text and "whitened" not in text
    white = (wide - wide.mean(axis=0)) / wide.std(axis=0)
    text = described(white, Scaling(multiply=[1.0]))
    assert "and a deviation of 1" in text and "shifts" not in text and "mean is not 0" not in text
    text = described(white * 3, Scaling(multiply=[2 / 3]))
    assert "and a deviation of 2: not 1" in text and f"by {-2 * np.log(2):+.2g} in logsnr" in text
    assert "as they are: not 1" in described(white * 3, Scaling(standardise="none"))
    assert "a mean of 3 and a deviation of 1; that mean is not 0" in described(white + 3, Scaling(multiply=[1.0]))
    with pytest.raises(ValueError, match="must vary"):
        scales.scale_of(np.ones((5, 2)), ALL)


def test_whitened_latents_are_said():
    white = normal(1000, 16)
    assert "whitened" in described(white) and "whitened" in described(normal(1000, 4, 4, 3))
    for scale in (np.linspace(1, 1.5, 16), np.append(np.ones(15), 0.0)):
        assert "whitened" not in described(white * np.float32(scale))
    # Equal deviations are not enough.
    assert "whitened" not in described((white + white[:, :1]) / np.sqrt(1 + (np.arange(16) > 0)))


def test_scale_sentence_says_where_the_stop_moves():
    rng = np.random.default_rng([3, 0])
    x = rng.standard_normal((70, 80)) * spectrum(80)
    candidate = pca_candidate(x, rng.standard_normal((128, 80)), 69)
    std, fine = candidate.latents.std(), np.linspace(-3, 11, 57)
    moved = [fine[exact_curve(x, 69, fine, scale=c).argmin()] for c in (std, std / 2)]
    text = described(candidate.latents, Scaling(multiply=[2 / float(std)]))
    said = float(re.search(r"shifts every stop by ([-+0-9.]+)", text).group(1))
    assert np.sign(said) == np.sign(moved[1] - moved[0])


def test_a_given_scale_is_used():
    rng = np.random.default_rng(7)
    x, held_out = rng.standard_normal((100, 6)) * spectrum(6), rng.standard_normal((1000, 6)) * spectrum(6)
    outcome = compare([pca_candidate(x, held_out, 4)], RecommendationConfig(samples=2048, stops=12, latent_scale=0.4))
    curve, error = (outcome.curves["pca/data/w2" + end] for end in ("", "/standard_error"))
    exact = exact_curve(x, 4, outcome.curves["pca/logsnr"], scale=2.5)
    np.testing.assert_array_less(np.abs(curve - exact), 4 * error)
    assert outcome.records[0]["latent_std"] == 2.5 and outcome.records[0]["latent_mean"] == 0.0


@pytest.mark.parametrize("shape", [(200, 4, 8, 8), (200, 8, 8, 4), (200, 16, 4), (200, 4)])
def test_factors_and_scales_of_channels(shape):
    per = np.array([1.2, 2.8, 0.3, 3.3]), np.array([-8.9, 1.5, 0.0, -2.0])
    axis = 1 if shape[1:] == (4, 8, 8) else len(shape) - 1
    std, mean = (x.reshape([-1 if i == axis else 1 for i in range(len(shape))]) for x in per)
    z = normal(*shape) * std + mean
    asked = scales.scale_of(z, Scaling(multiply=list(1 / per[0]), shift=list(per[1])))
    np.testing.assert_allclose(asked.standardise(z), (z - mean) / std, atol=1e-5)
    np.testing.assert_allclose(asked.unstandardise(asked.standardise(z)), z, atol=1e-4)
    own = scales.scale_of(z, Scaling(standardise="channel")).standardise(z)
    others = tuple(i for i in range(len(shape)) if i != axis)
    np.testing.assert_allclose(own.mean(axis=others), 0.0, atol=1e-5)
    np.testing.assert_allclose(own.std(axis=others), 1.0, atol=1e-5)
    one = scales.scale_of(z, Scaling(multiply=[2.0], shift=[0.5]))
    np.testing.assert_allclose(one.standardise(z), (z - 0.5) * 2.0, atol=1e-5)
    with pytest.raises(ValueError, match="one for each of 4 (channels|entries), got 3"):
        scales.scale_of(z, Scaling(multiply=[1.0, 2.0, 3.0]))


@pytest.mark.parametrize("factor, deviation", [(0.18215, 5.49), (0.13025, 7.68), (1.5305, 0.6534)])
def test_a_divisor_is_recognised_by_what_it_leaves(factor, deviation):
    z = deviation * normal(400, 4, 4, 4)
    assert scales.scale_of(z, Scaling(multiply=[factor])).standardise(z).std() == pytest.approx(1.0, abs=0.02)
    if factor == 1.5305:  # 1 / 1.53 leaves .43, and is far enough from 1 too
        assert deviation / factor < 1 / scales.RIGHT
    with pytest.raises(ValueError, match=rf"leaves the latents a deviation of .*give latent_scale={factor:.4g}"):
        scales.scale_of(z, Scaling(multiply=[1 / factor]))


def test_a_divisor_is_recognised_after_the_shift_of_each_channel():
    means = [-40.0, 0.0, 40.0]
    z = 5.49 * normal(400, 3) + np.float32(means)
    scales.scale_of(z, Scaling(multiply=[1 / 5.49], shift=means))
    with pytest.raises(ValueError, match="give latent_scale=0.1821"):
        scales.scale_of(z, Scaling(multiply=[5.49], shift=means))


def test_factors_that_do_not_fit_are_refused_before_anything_is_computed():
    two = Scaling(multiply=[1.0, 2.0])
    scales.check_factors(two, [(2,), (2, 5, 5), (5, 5, 2)])
    scales.check_factors(Scaling(multiply=[2.0], shift=[1.0]), [(3,), (4, 4)])
    with pytest.raises(ValueError, match="latent_scale: must hold one number or one for each of 3 entries, got 2"):
        scales.check_factors(two, [(2,), (3,)])
    with pytest.raises(ValueError, match="latent_shift: must hold one number or one for each of 4 channels, got 2"):
        scales.check_factors(Scaling(shift=[1.0, 2.0]), [(4, 8, 8)])


def test_a_channel_without_deviation_cannot_be_standardised():
    z = normal(100, 3) * np.float32([1, 0, 1])
    with pytest.raises(ValueError, match="needs channels that vary, number 1 does not"):
        scales.scale_of(z, Scaling(standardise="channel"))


UNEVEN = {
    "deviations and means": ((1.2, 2.8, 0.3, 3.3), (-8.9, 1.5, 0.0, -2.0)),
    "deviations": ((1.0, 1.0, 4.0, 1.0), (0.0, 0.0, 0.0, 0.0)),
    "means": ((1.0, 1.1, 0.9, 1.0), (-3.0, 0.0, 0.0, 3.0)),
}


@pytest.mark.parametrize("case", UNEVEN)
@pytest.mark.parametrize("shape", [(300, 4, 6, 6), (300, 6, 6, 4)])
def test_uneven_channels_are_said(case, shape):
    axis = shape.index(4)
    std, mean = (np.reshape(x, [-1 if i == axis else 1 for i in range(4)]) for x in UNEVEN[case])
    z = (normal(*shape) * std + mean).astype(np.float32)
    (text,) = scales.notices("z", z, ALL)
    assert "z: channels differ much" in text and "standardise=channel" in text
    assert scales.notices("z", z, Scaling(standardise="channel")) == []
    # One factor is no scale of each channel, four are.
    assert "channels differ much" in scales.notices("z", z, Scaling(multiply=[0.3]))[0]
    assert scales.notices("z", z, Scaling(multiply=[1.0, 2.0, 3.0, 4.0])) == []
    even = (z - mean) / std
    assert scales.notices("z", even.astype(np.float32), ALL) == []


def test_uneven_positions_and_entries_are_said():
    z = normal(300, 6, 6, 4)
    rows = np.linspace(0.05, 1, 6)[:, None, None]
    (text,) = scales.notices("z", z * rows, ALL)
    assert "positions differ much" in text
    (text,) = scales.notices("z", z + 8 * rows, ALL)
    assert "positions differ much" in text
    assert scales.notices("z", z * np.linspace(0.5, 1, 6)[:, None, None], ALL) == []
    # Components of falling variance are what an autoencoder makes, apart means are not.
    falling = normal(300, 16) * np.float32(spectrum(16))
    assert scales.notices("z", falling, ALL) == []
    assert "channels differ much" in scales.notices("z", falling + np.linspace(-4, 4, 16), ALL)[0]


@pytest.mark.parametrize("shape", [(300, 8, 5, 5), (300, 5, 5, 8), (300, 16)])
def test_stacked_log_variances_are_named(shape):
    axis = 1 if shape == (300, 8, 5, 5) else len(shape) - 1
    z = np.moveaxis(normal(*shape), axis, -1)
    half = z.shape[-1] // 2
    z[..., half:] = -6.0 + 0.05 * z[..., half:]
    texts = scales.notices("z", np.moveaxis(z, -1, axis), ALL)
    assert (
        f"{half} of {2 * half} channels hardly vary" in texts[0] and "log-variances? Give the means alone" in texts[0]
    )
    assert scales.notices("z", np.moveaxis(z[..., :half], -1, axis), ALL) == []
    one = z[..., :half].copy()
    one[..., 1] = 3.0  # a constant
    texts = scales.notices("z", np.moveaxis(one, -1, axis), ALL)
    assert f"1 of {half} channels hardly vary (numbers 1" in texts[0] and "log-variances" not in texts[0]
