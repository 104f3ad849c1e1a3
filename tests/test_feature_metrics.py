"""Distances in a feature space: closed forms, their errors, influences by finite differences, every refusal."""

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist

from ldmjax import gaussians, metrics
from ldmjax.metrics import features as module
from ldmjax.metrics import statistics
from ldmjax.random_matrices import root_trace

DIM, DRAWS, ALPHA, SIGMA = 4, 160, 0.8, 0.6
AXES = stats.ortho_group.rvs(DIM, random_state=0)
GENERATED, MEAN = AXES @ np.diag([1.5, 0.8, 0.6, 0.3]) @ AXES.T, np.array([0.3, 0.0, -0.2, 0.1])
TRUE = np.diag([2.0, 1.0, 0.5, 0.2])
POPULATION = np.diag([1.0, 0.5, 0.25, 0.04])  # of the points that noise is put on


def normal(rng, count, covariance, mean=0.0):
    variances, axes = np.linalg.eigh(covariance)
    return rng.standard_normal((count, len(covariance))) * np.sqrt(variances.clip(0.0)) @ axes.T + mean


def exact_distances(laws, reference):
    return {
        "w2": gaussians.w2_squared(*laws),
        "mmd": gaussians.mmd_squared(*laws, bandwidth=reference.bandwidth),
        "sliced_w2": gaussians.sliced_w2_squared(*laws, directions=reference.directions),
    }


def draw(seed, copies, *, images=70, rows=301, blocks=30):
    """(samples, reference, exact distances): independent draws of a Gaussian, or noise on points drawn from another one."""
    rng = np.random.default_rng([7, seed])
    reference = metrics.FeatureReference(normal(rng, rows, TRUE), blocks=blocks, directions=6)
    if copies is None:
        samples, law = normal(rng, 6 * images, GENERATED, MEAN).reshape(2, -1, DIM), (MEAN, GENERATED)
    else:
        points = normal(rng, images, POPULATION, MEAN)
        noise = rng.standard_normal((2, copies * images, DIM))
        samples = ALPHA * np.repeat(points, copies, axis=0) + SIGMA * noise
        # The law of a model that has learned the points' law, with their mean and covariance.
        law = ALPHA * points.mean(axis=0), ALPHA**2 * np.cov(points.T, bias=True) + SIGMA**2 * np.eye(DIM)
    return samples, reference, exact_distances((*law, np.zeros(DIM), TRUE), reference)


@pytest.fixture(scope="module", params=[None, 3], ids=["independent", "noisy images"])
def repeated(request):
    """Copies, and per metric (deviations from the exact law [DRAWS], reported errors [DRAWS]) over fresh draws."""
    found = {metric: [] for metric in metrics.FEATURE_METRICS}
    for seed in range(DRAWS):
        samples, reference, exact = draw(seed, request.param)
        pseudo = metrics.feature_pseudo_values(samples, reference, copies=request.param)
        for metric, p in pseudo.items():
            found[metric].append((p.mean() - exact[metric], p.std(ddof=1) / np.sqrt(len(p))))
    return request.param, {metric: np.array(values).T for metric, values in found.items()}


@pytest.mark.parametrize("metric", metrics.FEATURE_METRICS)
def test_estimates_have_the_exact_laws_mean_and_say_their_error(repeated, metric):
    copies, found = repeated
    deviation, error = found[metric]
    assert abs(deviation.mean()) < 4 * deviation.std(ddof=1) / np.sqrt(DRAWS)
    # The error of a standard deviation out of 160 draws is 6 %. The MMD of noisy images counts the images' mean and
    # covariance as drawn, though its halves are moved to them: its error is too large.
    most = 2.5 if metric == "mmd" and copies else 1.25
    assert 0.8 < np.sqrt(np.mean(error**2)) / deviation.std(ddof=1) < most


def test_noise_that_smooths_atoms_is_no_gain():
    """Points with the true covariance exactly: the model's distance only grows with noise, that of the noisy points falls."""
    rng, smooth, atoms, metric = np.random.default_rng(22), [], [], "sliced_w2"
    for _ in range(8):
        reference = metrics.FeatureReference(normal(rng, 2000, TRUE), directions=16, metrics=[metric])
        x = rng.standard_normal((500, DIM))
        points = (x - x.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T, bias=True))).T @ np.sqrt(TRUE)
        noise = rng.standard_normal((2, 500, DIM))
        clean, noisy = np.stack([points] * 2), 0.98 * points + np.sqrt(1 - 0.98**2) * noise
        both = [metrics.feature_pseudo_values(x, reference, copies=1)[metric].mean() for x in (clean, noisy)]
        smooth.append(both[0] - both[1])
        plain = [plain_sliced(x.reshape(-1, DIM), reference.features, reference) for x in (clean, noisy)]
        atoms.append(plain[0] - plain[1])
    error = np.std(smooth, ddof=1) / np.sqrt(8)
    assert np.mean(smooth) < 2 * error < np.mean(atoms)


@pytest.mark.parametrize("copies", [None, 1])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0, 8.0])
def test_w2_has_no_bias_with_few_rows_for_many_features(ratio, copies):
    """64 features with variances over three decades: the plug-in distance is off by many errors, the estimate by none."""
    dim, draws = 64, 24
    variances = np.geomspace(4.0, 0.004, dim)
    generated = 0.9 * variances + 0.05
    exact = np.sum((np.sqrt(generated) - np.sqrt(variances)) ** 2)
    found, plain = [], []
    for seed in range(draws):
        rng = np.random.default_rng([23, seed])
        y = rng.standard_normal((int(ratio * dim), dim)) * np.sqrt(variances)
        x = rng.standard_normal((2, 512, dim))
        if copies:  # points that have the law's covariance exactly
            centred = x[0] - x[0].mean(axis=0)
            x = np.stack([centred @ np.linalg.inv(np.linalg.cholesky(np.cov(centred.T, bias=True))).T] * 2)
        x = x * np.sqrt(generated)
        reference = metrics.FeatureReference(y, blocks=16, directions=1, metrics=["w2"])
        p = metrics.feature_pseudo_values(x, reference, copies=copies)["w2"]
        found.append(((p.mean() - exact), p.std(ddof=1) / 4))
        plain.append(
            gaussians.w2_squared(
                x.reshape(-1, dim).mean(axis=0), np.cov(x.reshape(-1, dim).T), y.mean(axis=0), np.cov(y.T)
            )
            - exact
        )
    deviation, error = np.array(found).T
    assert np.mean(np.abs(deviation) < 2.6 * error) >= 0.85
    assert np.mean(plain) > 4 * np.std(plain)
    if ratio >= 1:
        assert abs(deviation.mean()) < 4 * deviation.std() / np.sqrt(draws)
        assert error.mean() < 2 * deviation.std(ddof=1)


def frechet(x, y, w=None, v=None, *, copies=None):
    """Squared Fréchet distance of rows with weights, free of the bias that random matrix theory knows."""
    w, v = (np.full(len(a), 1.0) if b is None else b for a, b in ((x, w), (y, v)))
    (a, own), (b, other) = (
        (weights @ rows / weights.sum(), np.cov(rows.T, aweights=weights, bias=True).reshape(rows.shape[1], -1))
        for rows, weights in ((x, w), (y, v))
    )
    own, other = own if copies else own * (len(x) / (len(x) - 1)), other * (len(y) / (len(y) - 1))
    factor = gaussians.covariance_factor(other)
    rows = len(x) - 1 if copies is None else np.inf
    eigenvalues = np.linalg.eigvalsh(factor.T @ own @ factor)
    root = root_trace(eigenvalues, rows=len(y) - 1, other_rows=rows, rank=len(eigenvalues)).value
    mean_bias = np.trace(other) / len(y) + (np.trace(own) / len(x) if copies is None else 0.0)
    return np.sum((a - b) ** 2) - mean_bias + np.trace(own) + np.trace(other) - 2 * root


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
    weights = np.ones(count)
    weights[np.arange(count) * blocks // count == k] += step
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


@pytest.mark.parametrize(("metric", "copies"), [("w2", None), ("w2", 1), ("mmd", None), ("sliced_w2", None)])
@pytest.mark.parametrize("case", list(CASES))
def test_pseudo_values_are_derivatives_in_the_weight_of_a_block(case, metric, copies):
    """p_k - theta = K d theta / d (weight of block k), on odd sizes; the halves change in opposite ways for noisy images."""
    rng, blocks, step = np.random.default_rng(3), 16, 1e-4
    make_samples, make_reference = CASES[case]
    n, m = (97, 171) if metric != "sliced_w2" else (1001, 2003)
    a, b, y = make_samples(rng, n), make_samples(rng, n), make_reference(rng, m)
    reference = metrics.FeatureReference(y, blocks=blocks, directions=3, metrics=[metric])
    found = metrics.feature_pseudo_values(np.stack([a, b]), reference, copies=copies)[metric]
    # What is unknown of the bias is a pattern of +1, -1, not an influence.
    found = found - found.mean()
    if metric == "sliced_w2":
        found[0::2] += PATTERN * uncertain(a, b, y, reference)
        found[1::2] -= PATTERN * uncertain(a, b, y, reference)

    def statistic(k, step):
        wa, v = block_weights(n, blocks, k, step), block_weights(m, blocks, k, step)
        wb = block_weights(n, blocks, k, -step if copies else step)
        if metric == "mmd":
            return mmd(a, b, y, wa, wb, v, reference.bandwidth)
        both = np.concatenate([a, b]), y, np.concatenate([wa / wa.sum(), wb / wb.sum()]), v
        return sliced(*both, reference.directions) if metric == "sliced_w2" else frechet(*both, copies=copies)

    step = 0.02 if metric == "sliced_w2" else step
    slopes = [blocks * (statistic(k, step) - statistic(k, -step)) / (2 * step) for k in range(blocks)]
    # The influence leaves out terms of 1 / rows: the mean's bias, and that the derivative is taken at the estimate.
    tolerance = {"w2": 0.04, "mmd": 1e-4, "sliced_w2": 0.12}[metric] * np.std(slopes)
    np.testing.assert_allclose(found, slopes - np.mean(slopes), atol=tolerance)


PATTERN = np.sqrt(15 / 16) * np.sqrt(16) / stats.norm.isf(0.05)


def uncertain(a, b, y, reference):
    middle = len(y) // 2
    halves = np.mean([plain_sliced(x, z, reference) for x, z in ((a, y[:middle]), (b, y[middle:]))])
    return statistics.UNCERTAIN * (plain_sliced(np.concatenate([a, b]), y, reference) - halves)


def plain_sliced(x, z, reference):
    ranks = (np.arange(len(x)) + 0.5) / len(x)
    return np.mean([(np.sort(x @ u) - np.quantile(z @ u, ranks)) ** 2 for u in reference.directions])


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("copies", [None, 1])
def test_w2_is_equation_1_of_its_halves(case, copies):
    rng = np.random.default_rng(4)
    make_samples, make_reference = CASES[case]
    a, b, y = make_samples(rng, 65), make_samples(rng, 65), make_reference(rng, 131)
    reference = metrics.FeatureReference(y, metrics=["w2"])
    halves = frechet(a, y[:65], copies=copies) + frechet(b, y[65:], copies=copies)
    expected = 2 * frechet(np.concatenate([a, b]), y, copies=copies) - 0.5 * halves
    found = metrics.feature_pseudo_values(np.stack([a, b]), reference, copies=copies)["w2"]
    # A variance that is 0 comes out as rounding, of which the root is taken.
    assert found.mean() == pytest.approx(expected, rel=1e-6) and found.shape == (64,)


def test_sliced_w2_is_equation_1_of_sorted_projections():
    """Equal sizes need no interpolation at all: rank by rank."""
    rng = np.random.default_rng(5)
    a, b, y = rng.standard_normal((80, 3)), rng.standard_normal((80, 3)) + 0.2, 1.3 * rng.standard_normal((160, 3))
    reference = metrics.FeatureReference(y, blocks=40, directions=5, metrics=["sliced_w2"])
    np.testing.assert_allclose(np.linalg.norm(reference.directions, axis=1), 1.0)
    whole = plain_sliced(np.concatenate([a, b]), y, reference)
    halves = 0.5 * (plain_sliced(a, y[:80], reference) + plain_sliced(b, y[80:], reference))
    found = metrics.feature_pseudo_values(np.stack([a, b]), reference)["sliced_w2"]
    assert found.mean() == pytest.approx(2 * whole - halves, rel=1e-9)


def test_sliced_w2_of_noisy_images_compares_halves_of_the_images():
    rng = np.random.default_rng(24)
    x, y = np.repeat(rng.standard_normal((2, 40, 3)), 2, axis=1), rng.standard_normal((160, 3))
    reference = metrics.FeatureReference(y, blocks=40, directions=5, metrics=["sliced_w2"])
    flat = x.reshape(-1, 3) @ reference.directions.T
    whole, halves = plain_sliced(x.reshape(-1, 3), y, reference), []
    for part, z in ((x[:, :40], y[:80]), (x[:, 40:], y[80:])):
        half = part.reshape(-1, 3) @ reference.directions.T
        moved = np.sort((half - half.mean(0)) / half.std(0) * flat.std(0) + flat.mean(0), axis=0)
        halves.append(
            np.mean((moved - np.quantile(z @ reference.directions.T, (np.arange(80) + 0.5) / 80, axis=0)) ** 2)
        )
    found = metrics.feature_pseudo_values(x, reference, copies=2)["sliced_w2"]
    assert found.mean() == pytest.approx(whole + (1 + statistics.STAIRS / 2) * (whole - np.mean(halves)), rel=1e-9)


def test_mmd_of_noisy_images_pairs_halves_with_the_moments_of_all():
    rng = np.random.default_rng(25)
    x, y = np.repeat(rng.standard_normal((2, 40, 3)), 2, axis=1) + 0.3, rng.standard_normal((160, 3))
    reference = metrics.FeatureReference(y, blocks=40, metrics=["mmd"])
    a, b = statistics._matched_halves(x, reference, 2)
    flat = x.reshape(-1, 3)
    for half in (a, b):
        np.testing.assert_allclose(half.mean(axis=0), flat.mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(np.cov(half.T), np.cov(flat.T), atol=1e-12)
    # Recoloured, not exchanged: every row stays near its own.
    assert np.corrcoef(a.ravel(), x[:, :40].ravel())[0, 1] > 0.9 < np.corrcoef(b.ravel(), x[:, 40:].ravel())[0, 1]
    expected = mmd(a, b, y, np.ones(80), np.ones(80), np.ones(160), reference.bandwidth)
    found = metrics.feature_pseudo_values(x, reference, copies=2)["mmd"]
    assert found.mean() == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_no_image_is_in_two_blocks():
    """Six rows of each of 50 images in 40 blocks: the influence of one image moves one pseudo-value."""
    influence = np.zeros(300)
    influence[6 * 17 : 6 * 18] = 1.0
    sums = module._block_sums(influence, 40, 6)
    assert np.count_nonzero(np.abs(sums) > 0.1) == 1 and abs(sums.mean()) < 1e-12
    few = module._block_sums(np.repeat(np.arange(10.0), 6), 40, 6)  # fewer images than blocks: one at most in each
    assert np.std(few, ddof=1) / np.sqrt(40) == pytest.approx(np.std(np.arange(10.0)) / np.sqrt(10), rel=0.05)


def test_mmd_is_the_mean_over_pairs_of_different_halves():
    rng = np.random.default_rng(6)
    a, b, y = rng.standard_normal((70, 3)), rng.standard_normal((70, 3)) + 0.5, rng.standard_normal((140, 3))
    reference = metrics.FeatureReference(y, metrics=["mmd"])
    distances = cdist(y, y)[np.triu_indices(140, 1)]
    assert reference.bandwidth == pytest.approx(np.median(distances), rel=1e-5)
    expected = mmd(a, b, y, np.ones(70), np.ones(70), np.ones(140), reference.bandwidth)
    found = metrics.feature_pseudo_values(np.stack([a, b]), reference)["mmd"].mean()
    assert found == pytest.approx(expected, rel=1e-4)


def test_wide_features_with_fewer_rows_than_dimensions():
    """Reference of 130 rows in 200 dimensions, samples of rank 5: the distance to the true law, and no influence explodes."""
    rng = np.random.default_rng(8)
    weight = rng.standard_normal((5, 200))
    exact = gaussians.w2_squared(np.zeros(200), weight.T @ weight, np.zeros(200), np.eye(200))
    deviations = []
    for _ in range(20):
        samples, y = rng.standard_normal((2, 400, 5)) @ weight, rng.standard_normal((130, 200))
        found = metrics.feature_pseudo_values(samples, metrics.FeatureReference(y, metrics=["w2"]))["w2"]
        deviations.append((found.mean() - exact) / (found.std(ddof=1) / 8))
    assert np.mean(np.abs(deviations) < 2) >= 0.8


def test_directions_that_no_row_shows_are_in_the_error():
    """128 rows for 256 equal variances: half of the root of the covariance is unknown, and the error says so."""
    rng = np.random.default_rng(26)
    reference = metrics.FeatureReference(rng.standard_normal((128, 256)), metrics=["w2"])
    found = metrics.feature_pseudo_values(rng.standard_normal((2, 2048, 256)), reference)["w2"]
    error = found.std(ddof=1) / 8
    assert abs(found.mean()) < 2 * error and error > 10


def test_halves_without_noise_have_no_error_of_their_own():
    """Equal halves of noisy images: all error of w2 is the reference's; as independent draws the samples' comes on top."""
    rng = np.random.default_rng(9)
    x, y = 1.2 * rng.standard_normal((128, 3)), rng.standard_normal((256, 3))
    reference = metrics.FeatureReference(y, metrics=["w2"])
    common, independent = (
        metrics.feature_pseudo_values(np.stack([x, x]), reference, copies=c)["w2"] for c in (1, None)
    )
    shuffled = metrics.feature_pseudo_values(np.stack([x[::-1]] * 2), reference, copies=1)["w2"]
    np.testing.assert_allclose(common, shuffled, rtol=1e-3, atol=1e-5)
    assert np.std(independent) > 1.2 * np.std(common)


def test_the_law_of_the_reference_is_at_distance_zero():
    found = []
    for seed in range(100):
        rng = np.random.default_rng([2, seed])
        reference = metrics.FeatureReference(rng.standard_normal((129, 6)), metrics=["w2"], directions=1)
        found.append(metrics.feature_pseudo_values(rng.standard_normal((2, 64, 6)), reference)["w2"].mean())
    assert abs(np.mean(found)) < 4 * np.std(found) / 10


def test_constant_samples_have_a_distance():
    y = np.random.default_rng(11).standard_normal((256, 3))
    reference = metrics.FeatureReference(y)
    found = metrics.feature_pseudo_values(np.full((2, 64, 3), 0.5), reference, copies=1)
    assert all(np.all(np.isfinite(p)) for p in found.values())
    assert found["w2"].mean() == pytest.approx(np.sum(np.square(0.5 - y.mean(0)) + y.var(0)), rel=0.02)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_features_that_are_not_finite_are_infinitely_far(bad):
    reference = metrics.FeatureReference(np.random.default_rng(12).standard_normal((128, 2)), metrics=["mmd", "w2"])
    samples = np.random.default_rng(13).standard_normal((2, 64, 2))
    samples[1, 3, 1] = bad
    found = metrics.feature_pseudo_values(samples, reference)
    assert list(found) == ["mmd", "w2"]
    for p in found.values():
        np.testing.assert_array_equal(p, np.full(64, np.inf))


def test_refusals():
    y = np.random.default_rng(14).standard_normal((128, 3))
    reference = metrics.FeatureReference(y)
    for shape in [(128, 3), (3, 64, 3), (2, 64, 4), (2, 64, 3, 1)]:
        with pytest.raises(ValueError, match=r"\[2, N, F = 3\], got"):
            metrics.feature_pseudo_values(np.zeros(shape), reference)
    with pytest.raises(ValueError, match="at least 64 rows in each half, one per block, got 63"):
        metrics.feature_pseudo_values(np.zeros((2, 63, 3)), reference)
    for copies in (0, 3, 64):
        with pytest.raises(
            ValueError, match=f"64 rows in each half are not two or more images with {copies} rows of each"
        ):
            metrics.feature_pseudo_values(np.zeros((2, 64, 3)), reference, copies=copies)
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
    found = metrics.measure(images, measures, copies=1)
    assert seen == [(132, 2, 3)] and list(found) == [(s, m) for s in ("own", "first") for m in metrics.FEATURE_METRICS]
    expected = metrics.feature_pseudo_values(images.reshape(2, 66, 6) @ weight, reference, copies=1)
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
        p = metrics.feature_pseudo_values(samples, reference)["mmd"]
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
    found = metrics.feature_pseudo_values(samples, metrics.FeatureReference(y))
    plain = (samples.mean() - y.mean()) ** 2 + (samples.std() - y.std()) ** 2
    error = found["w2"].std(ddof=1) / 8
    assert found["w2"].mean() == pytest.approx(plain, abs=0.5 * error)


def test_w2_of_few_samples_has_no_bias():
    """Halves of 80 rows in 64 dimensions are too small for equation (1); all 160 are not."""
    found = []
    for seed in range(24):
        rng = np.random.default_rng([27, seed])
        x, y = rng.standard_normal((2, 80, 64)), rng.standard_normal((400, 64))
        p = metrics.feature_pseudo_values(x, metrics.FeatureReference(y, blocks=16, directions=1, metrics=["w2"]))["w2"]
        found.append((p.mean(), p.std(ddof=1) / 4))
    value, error = np.array(found).T
    assert abs(value.mean()) < 4 * value.std() / np.sqrt(24) and np.mean(np.abs(value) < 2 * error) >= 0.85


@pytest.mark.parametrize(("count", "rows"), [(75, 150), (75, 152), (100, 250), (250, 250)])
def test_w2_of_fewer_samples_than_features_is_unknown_not_wrong(count, rows):
    """Equal laws in 300 dimensions, 2 x 75 to 2 x 250 samples: what no row shows is in the error."""
    scale, z = np.sqrt(np.geomspace(4.0, 0.01, 300)), []
    for seed in range(4):
        rng = np.random.default_rng([28, seed])
        reference = metrics.FeatureReference(rng.standard_normal((rows, 300)) * scale, metrics=["w2"], directions=1)
        p = metrics.feature_pseudo_values(rng.standard_normal((2, count, 300)) * scale, reference)["w2"]
        z.append(p.mean() / (p.std(ddof=1) / 8))
    assert np.max(np.abs(z)) < 3


def test_extreme_inputs():
    y = np.random.default_rng(29).standard_normal((128, 3))
    reference = metrics.FeatureReference(y)
    for size in (1e20, 1e160):
        found = metrics.feature_pseudo_values(np.full((2, 64, 3), size), reference)
        assert all(np.all(np.isinf(p)) for p in found.values())
    two = metrics.feature_pseudo_values(np.repeat(y[:4].reshape(2, 2, 3), 32, axis=1), reference, copies=32)
    assert all(np.all(np.isfinite(p)) for p in two.values())
    with pytest.raises(ValueError, match="at least 2 blocks, got 1"):
        metrics.FeatureReference(y, blocks=1)


def test_mmd_of_few_images_with_many_features_has_no_bias():
    """60 images, 64 equal variances: halves cannot have the covariance of all, what their kernel lacks is added."""
    found, lacking, eye = [], [], np.eye(64)
    for seed in range(12):
        rng = np.random.default_rng([30, seed])
        reference = metrics.FeatureReference(rng.standard_normal((3000, 64)), metrics=["mmd"])
        points = np.repeat(rng.standard_normal((60, 64)), 20, axis=0)
        samples = 0.9 * points + np.sqrt(1 - 0.81) * rng.standard_normal((2, 1200, 64))
        law = 0.9 * points.mean(axis=0), 0.81 * np.cov(points[::20].T, bias=True) + 0.19 * eye
        exact = gaussians.mmd_squared(*law, np.zeros(64), eye, bandwidth=reference.bandwidth)
        found.append(metrics.feature_pseudo_values(samples, reference, copies=20)["mmd"].mean() - exact)
        shortfall = statistics._shortfall(statistics._matched_halves(samples, reference, 20))
        lacking.append(0.37 * shortfall / (2 * reference.bandwidth**4))
    error = np.std(found) / np.sqrt(12)
    assert abs(np.mean(found)) < 4 * error and abs(np.mean(found)) < 0.2 * np.mean(lacking) < 0.2
    assert np.mean(lacking) > 8 * error
