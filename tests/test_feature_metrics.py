"""Distances in a feature space: closed forms, their errors, equations (1)-(3) by finite differences, every refusal."""

import functools

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist

from ldmjax import gaussians, metrics
from ldmjax.metrics import features as module

DIM, DRAWS, ALPHA, SIGMA = 4, 160, 0.8, 0.6
AXES = stats.ortho_group.rvs(DIM, random_state=0)
GENERATED, MEAN = AXES @ np.diag([1.5, 0.8, 0.6, 0.3]) @ AXES.T, np.array([0.3, 0.0, -0.2, 0.1])
TRUE = np.diag([2.0, 1.0, 0.5, 0.2])
POINTS = np.random.default_rng(1).standard_normal((70, DIM)) @ np.diag([1.0, 0.7, 0.5, 0.2])


def normal(rng, count, covariance, mean=0.0):
    variances, axes = np.linalg.eigh(covariance)
    return rng.standard_normal((count, len(covariance))) * np.sqrt(variances.clip(0.0)) @ axes.T + mean


def mmd_of_noisy_points(bandwidth):
    """Exact squared MMD between the law of alpha x_i + sigma noise, i uniform, and N(0, TRUE)."""
    p, noise, eye = ALPHA * POINTS, SIGMA**2, np.eye(DIM)

    def kernel(total, shifts):
        inverse = np.linalg.inv(eye * bandwidth**2 + total)
        scale = np.linalg.det(eye + total / bandwidth**2) ** -0.5
        return scale * np.exp(-0.5 * np.einsum("...i,ij,...j->...", shifts, inverse, shifts)).mean()

    own = kernel(2 * noise * eye, p[:, None] - p)
    return own - 2 * kernel(noise * eye + TRUE, p) + kernel(2 * TRUE, np.zeros(DIM))


@functools.cache
def moments_and_projections_of_noisy_points(directions):
    """(squared W2, squared sliced W2) of the same law; its quantile functions are inverted on a grid."""
    covariance = ALPHA**2 * np.cov(POINTS.T, bias=True) + SIGMA**2 * np.eye(DIM)
    p, ranks, sliced = ALPHA * POINTS, (np.arange(20_000) + 0.5) / 20_000, []
    for u in np.array(directions):
        grid = np.linspace(-12, 12, 3001)
        quantiles = np.interp(ranks, stats.norm.cdf((grid[:, None] - p @ u) / SIGMA).mean(axis=1), grid)
        sliced.append(np.mean((quantiles - np.sqrt(u @ TRUE @ u) * stats.norm.ppf(ranks)) ** 2))
    return gaussians.w2_squared(p.mean(axis=0), covariance, np.zeros(DIM), TRUE), np.mean(sliced)


def law_of_noisy_points(reference):
    w2, sliced = moments_and_projections_of_noisy_points(tuple(map(tuple, reference.directions)))
    return {"w2": w2, "mmd": mmd_of_noisy_points(reference.bandwidth), "sliced_w2": sliced}


def law_of_independent_draws(reference):
    laws = MEAN, GENERATED, np.zeros(DIM), TRUE
    return {
        "w2": gaussians.w2_squared(*laws),
        "mmd": gaussians.mmd_squared(*laws, bandwidth=reference.bandwidth),
        "sliced_w2": gaussians.sliced_w2_squared(*laws, directions=reference.directions),
    }


def draw(seed, common_images, *, count=210, rows=301, blocks=30):
    rng = np.random.default_rng([7, seed])
    reference = metrics.FeatureReference(normal(rng, rows, TRUE), blocks=blocks, directions=6)
    if common_images:
        noise = rng.standard_normal((2, count, DIM))
        samples = ALPHA * np.repeat(POINTS, count // len(POINTS), axis=0) + SIGMA * noise
    else:
        samples = normal(rng, 2 * count, GENERATED, MEAN).reshape(2, count, DIM)
    return samples, reference


@pytest.fixture(scope="module", params=[False, True], ids=["independent", "common images"])
def repeated(request):
    """Per metric (deviations from the exact law [DRAWS], reported standard errors [DRAWS]) over fresh draws of everything."""
    found = {metric: [] for metric in metrics.FEATURE_METRICS}
    for seed in range(DRAWS):
        samples, reference = draw(seed, request.param)
        exact = law_of_noisy_points(reference) if request.param else law_of_independent_draws(reference)
        pseudo = metrics.feature_pseudo_values(samples, reference, common_images=request.param)
        for metric, p in pseudo.items():
            found[metric].append((p.mean() - exact[metric], p.std(ddof=1) / np.sqrt(len(p))))
    return {metric: np.array(values).T for metric, values in found.items()}


@pytest.mark.parametrize("metric", metrics.FEATURE_METRICS)
def test_estimates_have_the_exact_laws_mean_and_say_their_error(repeated, metric):
    deviation, error = repeated[metric]
    assert abs(deviation.mean()) < 4 * deviation.std(ddof=1) / np.sqrt(DRAWS)
    # The error of a standard deviation out of 160 draws is 6 %.
    assert np.sqrt(np.mean(error**2)) == pytest.approx(deviation.std(ddof=1), rel=0.25)


def test_the_halves_remove_the_bias_of_w2():
    """Two samples of one law: the plug-in distance is far above 0, equation (2) is not."""
    plain, found = [], []
    for seed in range(100):
        rng = np.random.default_rng([2, seed])
        x, y = rng.standard_normal((2, 64, 6)), rng.standard_normal((129, 6))
        reference = metrics.FeatureReference(y, metrics=["w2"], directions=1)
        found.append(metrics.feature_pseudo_values(x, reference, common_images=False)["w2"].mean())
        plain.append(frechet(x.reshape(-1, 6), y))
    error = np.std(found) / 10
    assert abs(np.mean(found)) < 4 * error < np.mean(plain) / 5


def frechet(x, y, w=None, v=None):
    """Plug-in squared Fréchet distance of rows with weights."""
    w, v = (np.full(len(a), 1.0) if b is None else b for a, b in ((x, w), (y, v)))
    moments = []
    for rows, weights in ((x, w / w.sum()), (y, v / v.sum())):
        mean = weights @ rows
        moments += [mean, (rows - mean).T @ (weights[:, None] * (rows - mean))]
    return gaussians.w2_squared(*moments)


def mmd(a, b, y, wa, wb, v, bandwidth):
    """Weighted statistic: pairs of one row of each half, halves with the reference, distinct reference rows."""
    wa, wb, v = wa / wa.sum(), wb / wb.sum(), v / v.sum()
    kernel = lambda x, z: np.exp(-0.5 * cdist(x, z, "sqeuclidean") / bandwidth**2)  # noqa: E731
    own = v @ kernel(y, y) @ v - v @ v
    return wa @ kernel(a, b) @ wb - wa @ kernel(a, y) @ v - wb @ kernel(b, y) @ v + own / (1 - v @ v)


def sliced(x, y, w, v, directions, grid=40_000):
    """Weighted squared sliced W2: quantile functions of both weighted samples on a fine grid."""
    ranks, total = (np.arange(grid) + 0.5) / grid, 0.0
    for u in directions:
        quantiles = []
        for rows, weights in ((x, w), (y, v)):
            order = np.argsort(rows @ u)
            weights = weights[order] / weights.sum()
            quantiles.append(np.interp(ranks, np.cumsum(weights) - 0.5 * weights, (rows @ u)[order]))
        total += np.mean((quantiles[0] - quantiles[1]) ** 2)
    return total / len(directions)


def block_weights(count, blocks, k, step):
    edges = np.linspace(0, count, blocks + 1).astype(int)
    weights = np.ones(count)
    weights[edges[k] : edges[k + 1]] += step
    return weights


CASES = {
    "full": (lambda rng, n: normal(rng, n, GENERATED, MEAN), lambda rng, m: normal(rng, m, TRUE)),
    "flat samples": (
        lambda rng, n: normal(rng, n, np.diag([1.0, 0.5, 0, 0])) @ AXES.T,
        lambda rng, m: normal(rng, m, TRUE),
    ),
    "flat reference": (
        lambda rng, n: normal(rng, n, GENERATED, MEAN),
        lambda rng, m: normal(rng, m, np.diag([2.0, 1.0, 0, 0])) @ AXES + 0.5,
    ),
    "both flat": (
        lambda rng, n: normal(rng, n, np.diag([1.0, 0.5, 0, 0])),
        lambda rng, m: normal(rng, m, np.diag([0, 1.0, 2.0, 0])),
    ),
}


@pytest.mark.parametrize("common_images", [False, True])
@pytest.mark.parametrize("metric", metrics.FEATURE_METRICS)
@pytest.mark.parametrize("case", list(CASES))
def test_pseudo_values_are_derivatives_in_the_weight_of_a_block(case, metric, common_images):
    """p_k - theta = K d theta / d (weight of block k), on odd sizes; the halves change in opposite ways for common images."""
    rng, blocks, step = np.random.default_rng(3), 11, 1e-4
    make_samples, make_reference = CASES[case]
    n, m = (97, 171) if metric != "sliced_w2" else (1001, 2003)
    a, b, y = make_samples(rng, n), make_samples(rng, n), make_reference(rng, m)
    reference = metrics.FeatureReference(y, blocks=blocks, directions=3, metrics=[metric])
    found = metrics.feature_pseudo_values(np.stack([a, b]), reference, common_images=common_images)[metric]

    def statistic(k, step):
        wa, v = block_weights(n, blocks, k, step), block_weights(m, blocks, k, step)
        wb = block_weights(n, blocks, k, -step if common_images else step)
        if metric == "mmd":
            return mmd(a, b, y, wa, wb, v, reference.bandwidth)
        both = np.concatenate([a, b]), y, np.concatenate([wa / wa.sum(), wb / wb.sum()]), v
        return sliced(*both, reference.directions) if metric == "sliced_w2" else frechet(*both)

    step = 0.02 if metric == "sliced_w2" else step
    slopes = [blocks * (statistic(k, step) - statistic(k, -step)) / (2 * step) for k in range(blocks)]
    tolerance = {"w2": 1e-4, "mmd": 1e-4, "sliced_w2": 0.12}[metric] * np.std(slopes)
    np.testing.assert_allclose(found - found.mean(), slopes, atol=tolerance)


@pytest.mark.parametrize("case", list(CASES))
def test_w2_is_equation_2_of_plug_in_distances(case):
    rng = np.random.default_rng(4)
    make_samples, make_reference = CASES[case]
    a, b, y = make_samples(rng, 65), make_samples(rng, 65), make_reference(rng, 131)
    reference = metrics.FeatureReference(y, metrics=["w2"])
    expected = 2 * frechet(np.concatenate([a, b]), y) - 0.5 * (frechet(a, y[:65]) + frechet(b, y[65:]))
    for common_images in (False, True):
        found = metrics.feature_pseudo_values(np.stack([a, b]), reference, common_images=common_images)
        # A variance that is 0 comes out as rounding, of which the root is taken.
        assert found["w2"].mean() == pytest.approx(expected, rel=1e-7) and found["w2"].shape == (64,)


def test_sliced_w2_is_equation_2_of_sorted_projections():
    """Equal sizes need no interpolation at all: rank by rank."""
    rng = np.random.default_rng(5)
    a, b, y = rng.standard_normal((80, 3)), rng.standard_normal((80, 3)) + 0.2, 1.3 * rng.standard_normal((160, 3))
    reference = metrics.FeatureReference(y, blocks=40, directions=5, metrics=["sliced_w2"])
    np.testing.assert_allclose(np.linalg.norm(reference.directions, axis=1), 1.0)

    def plain(x, z):
        ranks = (np.arange(len(x)) + 0.5) / len(x)
        return np.mean([(np.sort(x @ u) - np.quantile(z @ u, ranks)) ** 2 for u in reference.directions])

    expected = 2 * plain(np.concatenate([a, b]), y) - 0.5 * (plain(a, y[:80]) + plain(b, y[80:]))
    found = metrics.feature_pseudo_values(np.stack([a, b]), reference, common_images=False)["sliced_w2"]
    assert found.mean() == pytest.approx(expected, rel=1e-9)


def test_mmd_is_the_mean_over_pairs_of_different_halves():
    rng = np.random.default_rng(6)
    a, b, y = rng.standard_normal((70, 3)), rng.standard_normal((70, 3)) + 0.5, rng.standard_normal((140, 3))
    reference = metrics.FeatureReference(y, metrics=["mmd"])
    distances = cdist(y, y)[np.triu_indices(140, 1)]
    assert reference.bandwidth == pytest.approx(np.median(distances), rel=1e-5)
    expected = mmd(a, b, y, np.ones(70), np.ones(70), np.ones(140), reference.bandwidth)
    found = metrics.feature_pseudo_values(np.stack([a, b]), reference, common_images=False)["mmd"].mean()
    assert found == pytest.approx(expected, rel=1e-4)


def test_wide_features_with_fewer_rows_than_dimensions():
    """Reference of rank 129 in 200 dimensions, samples of rank 5: the plain formula, and no influence explodes."""
    rng = np.random.default_rng(8)
    samples = rng.standard_normal((2, 100, 5)) @ rng.standard_normal((5, 200))
    y = rng.standard_normal((130, 200))
    reference = metrics.FeatureReference(y, metrics=["w2"])
    found = metrics.feature_pseudo_values(samples, reference, common_images=False)["w2"]
    expected = 2 * frechet(samples.reshape(-1, 200), y) - 0.5 * (
        frechet(samples[0], y[:65]) + frechet(samples[1], y[65:])
    )
    assert found.mean() == pytest.approx(expected, rel=1e-7)
    assert np.std(found) < 10 * expected


def test_halves_without_noise_have_no_error_of_their_own():
    """Equal halves of common images: all error is the reference's; as independent draws the samples' comes on top."""
    rng = np.random.default_rng(9)
    x, y = 1.2 * rng.standard_normal((128, 3)), rng.standard_normal((256, 3))
    reference = metrics.FeatureReference(y)
    common, independent = (
        metrics.feature_pseudo_values(np.stack([x, x]), reference, common_images=flag) for flag in (True, False)
    )
    shuffled = metrics.feature_pseudo_values(np.stack([x[::-1]] * 2), reference, common_images=True)
    for metric in metrics.FEATURE_METRICS:
        np.testing.assert_allclose(common[metric], shuffled[metric], rtol=1e-3, atol=1e-5)
        assert np.std(independent[metric]) > 1.2 * np.std(common[metric])


def test_the_samples_that_are_the_reference_are_at_distance_zero():
    y = np.random.default_rng(10).standard_normal((256, 3))
    reference = metrics.FeatureReference(y, blocks=32, metrics=["w2"])
    # Halves of the samples are those of the reference: every term of equation (2) is 0.
    found = metrics.feature_pseudo_values(y.reshape(2, 128, 3), reference, common_images=False)["w2"]
    np.testing.assert_allclose(found, 0.0, atol=1e-5)


def test_constant_samples_have_a_distance():
    y = np.random.default_rng(11).standard_normal((256, 3))
    reference = metrics.FeatureReference(y)
    found = metrics.feature_pseudo_values(np.full((2, 64, 3), 0.5), reference, common_images=True)
    assert all(np.all(np.isfinite(p)) for p in found.values())
    point = np.full((2, 3), 0.5)
    plain = [frechet(point, part) for part in (y, y[:128], y[128:])]
    assert found["w2"].mean() == pytest.approx(2 * plain[0] - 0.5 * (plain[1] + plain[2]), rel=1e-9)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_features_that_are_not_finite_are_infinitely_far(bad):
    reference = metrics.FeatureReference(np.random.default_rng(12).standard_normal((128, 2)), metrics=["mmd", "w2"])
    samples = np.random.default_rng(13).standard_normal((2, 64, 2))
    samples[1, 3, 1] = bad
    found = metrics.feature_pseudo_values(samples, reference, common_images=False)
    assert list(found) == ["mmd", "w2"]
    for p in found.values():
        np.testing.assert_array_equal(p, np.full(64, np.inf))


def test_refusals():
    y = np.random.default_rng(14).standard_normal((128, 3))
    reference = metrics.FeatureReference(y)
    for shape in [(128, 3), (3, 64, 3), (2, 64, 4), (2, 64, 3, 1)]:
        with pytest.raises(ValueError, match=r"\[2, N, F = 3\], got"):
            metrics.feature_pseudo_values(np.zeros(shape), reference, common_images=False)
    with pytest.raises(ValueError, match="at least 64 rows in each half, one per block, got 63"):
        metrics.feature_pseudo_values(np.zeros((2, 63, 3)), reference, common_images=False)
    with pytest.raises(ValueError, match=r"at least 128 finite rows \[M, F\], got \[127, 3\]"):
        metrics.FeatureReference(y[:127])
    with pytest.raises(ValueError, match="finite rows"):
        metrics.FeatureReference(np.where(y > 2, np.nan, y))
    with pytest.raises(ValueError, match="finite rows"):
        metrics.FeatureReference(y.ravel())
    with pytest.raises(ValueError, match=r"out of w2, mmd, sliced_w2, got kl"):
        metrics.FeatureReference(y, metrics=["w2", "kl"])
    with pytest.raises(ValueError, match="coincide"):
        metrics.FeatureReference(np.zeros((128, 3)))


def test_measure_splits_images_into_the_same_halves():
    rng = np.random.default_rng(15)
    images, y = rng.standard_normal((2, 66, 2, 3)), rng.standard_normal((130, 4))
    weight = rng.standard_normal((6, 4))
    seen = []

    def features(x):
        seen.append(x.shape)
        return x.reshape(len(x), -1) @ weight

    reference = metrics.FeatureReference(y)
    measures = {
        "own": metrics.Measure(features, reference),
        "first": metrics.Measure(lambda x: x[:, 0], two_columns(y)),
    }
    found = metrics.measure(images, measures, common_images=True)
    assert seen == [(132, 2, 3)] and list(found) == [(s, m) for s in ("own", "first") for m in metrics.FEATURE_METRICS]
    expected = metrics.feature_pseudo_values(images.reshape(2, 66, 6) @ weight, reference, common_images=True)
    for metric, p in expected.items():
        np.testing.assert_allclose(found["own", metric], p)


def two_columns(y):
    return metrics.FeatureReference(y[:, :3])


def test_kernel_means_are_those_of_the_whole_matrix():
    """More rows than are made at once; an offset far larger than the spread must not cost accuracy."""
    rng = np.random.default_rng(16)
    y = rng.standard_normal((200, 3)) + 30.0
    reference = metrics.FeatureReference(y)
    a, b = rng.standard_normal((2 * module.KERNEL_ROWS + 7, 3)) + 30.0, rng.standard_normal((37, 3)) + 30.5
    kernel = np.exp(-0.5 * cdist(a, b, "sqeuclidean") / reference.bandwidth**2)
    over_b, over_a = reference.kernel_means(a, b)
    np.testing.assert_allclose(over_b, kernel.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(over_a, kernel.mean(axis=0), rtol=1e-5)


def test_mmd_takes_reference_rows_from_every_block():
    y = np.random.default_rng(17).standard_normal((3001, 2))
    reference = metrics.FeatureReference(y, metrics=["mmd"])
    rows = reference.kernel_rows
    assert len(rows) == module.KERNEL_REFERENCE == len(set(rows.tolist()))
    per_block = np.histogram(rows, np.linspace(0, 3001, 65))[0]
    assert per_block.min() >= 31 and per_block.max() <= 33
    np.testing.assert_array_equal(metrics.FeatureReference(y[:200]).kernel_rows, np.arange(200))
    kernel = np.exp(-0.5 * cdist(y[rows[:3]], y[rows], "sqeuclidean") / reference.bandwidth**2)
    np.testing.assert_allclose(reference.own_kernel[:3], (kernel.sum(axis=1) - 1) / 2047, rtol=1e-5)


def test_error_of_mmd_is_that_of_the_rows_that_it_used(monkeypatch):
    monkeypatch.setattr(module, "KERNEL_REFERENCE", 100)
    found = []
    for seed in range(150):
        rng = np.random.default_rng([18, seed])
        reference = metrics.FeatureReference(rng.standard_normal((400, 3)), blocks=25, metrics=["mmd"])
        samples = rng.standard_normal((2, 300, 3)) + 0.8
        p = metrics.feature_pseudo_values(samples, reference, common_images=False)["mmd"]
        exact = gaussians.mmd_squared(np.full(3, 0.8), np.eye(3), np.zeros(3), np.eye(3), bandwidth=reference.bandwidth)
        found.append((p.mean() - exact, p.std(ddof=1) / 5))
    deviation, error = np.array(found).T
    assert abs(deviation.mean()) < 4 * deviation.std() / np.sqrt(150)
    assert np.sqrt(np.mean(error**2)) == pytest.approx(deviation.std(ddof=1), rel=0.25)


def test_nearest_distances_are_those_of_all_pairs():
    rng = np.random.default_rng(19)
    samples, others = rng.standard_normal((40, 3, 2)) + 5.0, rng.standard_normal((90, 3, 2)) + 5.0
    expected = cdist(samples.reshape(40, 6), others.reshape(90, 6)).min(axis=1)
    np.testing.assert_allclose(metrics.nearest_distances(samples, others), expected, rtol=1e-4)
    copies = metrics.nearest_distances(others[:5], others)
    assert np.all(copies < 2e-3)  # float32 squares: copies are told from neighbours, not measured


@pytest.mark.parametrize("offset", [1.0, 1e4])
def test_bandwidth_does_not_depend_on_an_offset(offset):
    y = np.random.default_rng(20).standard_normal((300, 3))
    found = metrics.FeatureReference(y + offset).bandwidth
    assert found == pytest.approx(metrics.FeatureReference(y).bandwidth, rel=1e-4)


def test_one_feature():
    rng = np.random.default_rng(21)
    y, samples = rng.standard_normal((400, 1)), 1.5 * rng.standard_normal((2, 300, 1))
    found = metrics.feature_pseudo_values(samples, metrics.FeatureReference(y), common_images=False)
    plain = [(a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
             for a, b in [(samples, y), (samples[0], y[:200]), (samples[1], y[200:])]]  # fmt: skip
    assert found["w2"].mean() == pytest.approx(2 * plain[0] - 0.5 * (plain[1] + plain[2]))
