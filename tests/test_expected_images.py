"""Forms of images that an autoencoder expects: what it was made for is named, and what fits passes."""

import functools

import numpy as np
import pytest

from ldmjax import autoencoders, data
from ldmjax.recommendation import expected_images as module

RNG = np.random.default_rng(0)


@functools.cache
def digits():
    """Digits [-1, 1] as grey images, 600 to fit and the others."""
    dataset = data.digits()
    images = dataset.images(dataset.samples)
    return images[:600], images[600:]


@functools.cache
def colours():
    """Coloured digits [-1, 1], ``[N, 8, 8, 3]``: every colour is another function of the same grey."""
    return tuple(np.stack([x, np.tanh(2 * x) * 0.7, -0.3 * x**2 + 0.1], axis=-1).astype(np.float32) for x in digits())


def made_for(images, d):
    """reconstruct() of PCA with a mean, and a squashed output as networks have."""
    fitted = autoencoders.fit(images, [(d,)], autoencoders.AutoencoderConfig(kind="pca"), seeds=[0])[0]
    low, high = images.min(), images.max()
    return lambda x: np.clip(fitted.decode(fitted.encode(x)), low, high)


def refusal(reconstruct, images, **options):
    with pytest.raises(ValueError) as error:
        module.check_autoencoder("own", reconstruct, images, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def error_of(reconstructed, images):
    return np.mean((reconstructed - images) ** 2) / np.mean((images - images.mean(axis=0)) ** 2)


FORMS = {
    "[0, 1]": lambda x: (x + 1) / 2,
    "[-1, 1]": lambda x: x,
    "[0, 255]": lambda x: (x + 1) * 127.5,
}


@pytest.mark.parametrize("given", list(FORMS))
@pytest.mark.parametrize("expected", list(FORMS))
@pytest.mark.parametrize("d", [4, 24])
def test_ranges(given, expected, d):
    train, others = digits()
    reconstruct, images = made_for(FORMS[expected](train), d), FORMS[given](others).astype(np.float32)
    if given == expected:
        assert module.check_autoencoder("own", reconstruct, images) == []
        return
    text = refusal(reconstruct, images)
    assert f"own reconstructs images as they are, values {images[:64].min():.3g} to {images[:64].max():.3g}, " in text
    assert f"but images brought from {given} to {expected} with " in text
    right = FORMS[expected](others)[:64]
    for wanted, x in (
        (error_of(reconstruct(images[:64]), images[:64]), "as they are"),
        (error_of(reconstruct(right), right), "with"),
    ):
        assert f"{100 * wanted:.3g} %" in text, x


def test_a_network_made_for_another_range():
    """The suite's convolutional autoencoder, trained on [-1, 1], gets [0, 1]."""
    train, others = digits()
    config = autoencoders.AutoencoderConfig(kind="conv", steps=300)
    fitted = autoencoders.fit(train, [(16,)], config, seeds=[0])[0]
    reconstruct = lambda x: fitted.decode(fitted.encode(x))  # noqa: E731
    assert module.check_autoencoder("own", reconstruct, others) == []
    assert "brought from [0, 1] to [-1, 1]" in refusal(reconstruct, (others + 1) / 2)
    assert "brought from [0, 255] to [-1, 1]" in refusal(reconstruct, (others + 1) * 127.5)


def test_unusual_range_is_named():
    train, others = digits()
    assert "brought from [0, 16] to [-1, 1]" in refusal(made_for(train, 24), (others + 1) * 8)


def test_order_of_colours():
    train, others = colours()
    reconstruct = made_for(train, 16)
    assert module.check_autoencoder("own", reconstruct, others) == []
    assert "but images with colours in reverse order (BGR for RGB) with" in refusal(reconstruct, others[..., ::-1])
    text = refusal(reconstruct, (others[..., ::-1] + 1) / 2)
    assert "brought from [0, 1] to [-1, 1], with colours in reverse order" in text
    alpha = [np.concatenate([x, x[..., :1]], axis=-1) for x in (train, others)]
    assert "reverse order" in refusal(made_for(alpha[0], 16), alpha[1][..., [2, 1, 0, 3]])


def test_order_of_axes():
    train, others = colours()
    flat_first = np.moveaxis(train, -1, 1).reshape(600, 8, 8, 3)  # as flattening makes of channels first
    reconstruct = made_for(flat_first, 16)
    assert "flattened in the other order ([C, H, W] for [H, W, C])" in refusal(reconstruct, others)
    # Its owner has channels first, the autoencoder was made for channels last.
    own = made_for(train.reshape(600, 3, 8, 8), 16)

    def through_first(images):
        return data.channels.move_last(own(data.channels.move_first(images)))

    assert "flattened in the other order ([H, W, C] for [C, H, W])" in refusal(
        through_first, others, channels_first=True
    )
    module.check_autoencoder(
        "own", made_for(np.moveaxis(train, -1, 1), 16), np.moveaxis(others, -1, 1), channels_first=True
    )


def linear(basis, mean=0.0):
    return lambda x: ((x.reshape(len(x), -1) - mean) @ basis @ basis.T + mean).reshape(x.shape)


@pytest.mark.parametrize("given", list(FORMS))
@pytest.mark.parametrize("d", [2, 20, 60])
def test_what_is_linear_or_knows_no_range_passes(given, d):
    train, others = digits()
    images = FORMS[given](others).astype(np.float32)
    assert (
        module.check_autoencoder(
            "own", linear(np.linalg.qr(RNG.standard_normal((64, d)))[0].astype(np.float32)), images
        )
        == []
    )
    centred = (train - train.mean(axis=0)).reshape(600, 64)
    assert module.check_autoencoder("own", linear(np.linalg.svd(centred, full_matrices=False)[2][:d].T), images) == []

    def normalising(x):
        mean, deviation = x.mean(axis=(1, 2), keepdims=True), x.std(axis=(1, 2), keepdims=True)
        return np.tanh((x - mean) / deviation) * deviation + mean

    assert module.check_autoencoder("own", normalising, images) == []


@pytest.mark.parametrize(
    "kind", ["pca", "conv", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("kl", "vq"))]
)
def test_the_suites_autoencoders_pass(kind):
    for train, others in (digits(), colours()):
        config = autoencoders.AutoencoderConfig(kind=kind, steps=40)
        options = {"seeds": [0, 0]}
        for fitted in autoencoders.fit(train, [(4,), (32,)], config, **options):
            assert module.check_autoencoder("own", lambda x, f=fitted: f.decode(f.encode(x)), others) == []


def test_what_is_bad_in_every_form_or_good_passes():
    _, others = digits()
    assert module.check_autoencoder("own", lambda x: 0 * x + 0.1, others) == []
    assert module.check_autoencoder("own", lambda x: x + 0.01, others) == []
    assert module.check_autoencoder("own", lambda x: np.full_like(x, np.inf), others) == []
    assert module.check_autoencoder("own", lambda x: np.sin(9 * x[::-1]), others) == []
    assert module.check_autoencoder("own", lambda x: x, np.ones((70, 8, 8), np.float32)) == []


def test_a_function_that_refuses_other_forms_passes_or_names_those_it_takes():
    train, others = digits()
    inner = made_for(train, 24)

    def picky(x):
        if x.min() < -1 or x.max() > 1:
            raise ValueError("own: decode: ValueError: out of range")
        return inner(x)

    assert module.check_autoencoder("own", picky, others) == []
    assert "from [0, 1] to [-1, 1]" in refusal(picky, (others + 1) / 2)
    with pytest.raises(ValueError, match="out of range"):
        module.check_autoencoder("own", picky, others * 3)


def test_decoded_latents():
    train, others = colours()
    decoded = made_for(train, 24)(others[:64])
    assert module.check_decoded("z", decoded, others[:64]) == []

    def text_of(images, **options):
        with pytest.raises(ValueError) as error:
            module.check_decoded("z", decoded, images, **options)
        return str(error.value)

    unit = ((others[:64] + 1) / 2).astype(np.float32)
    right, wrong = (100 * error_of(decoded, x) for x in (others[:64], unit))
    text = text_of(unit)
    assert "of z the decoder gives images as they are" in text and "brought from [0, 1] to [-1, 1]" in text
    assert f"{wrong:.3g} %" in text and f"{right:.3g} %" in text
    assert "from [0, 255] to [-1, 1]" in text_of((others[:64] + 1) * 127.5)
    assert "reverse order" in text_of(others[:64, :, :, ::-1])
    flat = np.moveaxis(decoded, -1, 1).reshape(decoded.shape)
    decoded = flat
    assert "flattened in the other order" in text_of(others[:64])


def slightly_off(share, often=1.0):
    """reconstruct() whose relative error on images from 0 on is ``share`` of that on others, but only so often."""

    def reconstruct(x):
        size = np.full(len(x), 0.3 if x.max() <= 1 else 0.2 * np.ptp(x))
        if x.min() >= 0 and x.max() <= 1:
            size = 0.15 * np.ptp(x) * np.where(np.arange(len(x)) % 20 < 20 * often, np.sqrt(share), 1.05)
        return x + (size[:, None, None] * np.where(np.arange(8) % 2, 1, -1)).astype(np.float32)

    return reconstruct


def test_a_form_that_is_better_but_not_by_far_is_doubted():
    _, images = digits()
    (line,) = module.check_autoencoder("own", slightly_off(0.94), images)
    assert "but images brought from [-1, 1] to [0, 1] with" in line and line.endswith("is it made for that form?")
    said = [float(part.split(" %")[0]) for part in (line.split("an error of ")[1], line.split("[0, 1] with ")[1])]
    assert said[1] / said[0] == pytest.approx(0.94, rel=0.01)
    assert module.check_autoencoder("own", slightly_off(0.98), images) == []
    assert module.check_autoencoder("own", slightly_off(0.85, often=0.6), images) == []  # in few images: by chance
    assert "[0, 1]" in refusal(slightly_off(0.85), images)


def test_ranges_of_values():
    for values, expected in (
        ([0.0, 1.0], (0.0, 1.0)),
        ([-0.04, 1.03], (0.0, 1.0)),
        ([-1.0, 1.0], (-1.0, 1.0)),
        ([-1.0, 0.1], (-1.0, 1.0)),
        ([0.0, 255.0], (0.0, 255.0)),
        ([3.0, 200.0], (0.0, 255.0)),
        ([0.0, 16.0], (0.0, 16.0)),
        ([-3.0, 3.0], (-3.0, 3.0)),
        ([0.0, 0.1], (0.0, 0.1)),
        ([0.0, 65535.0], (0.0, 65535.0)),
    ):
        assert module.range_of(np.array(values)) == expected


def test_noise_and_rounding_of_encode_are_no_range():
    """A VAE that samples, and a quantiser: the larger the values, the smaller their error, in any range."""
    train, others = digits()
    basis = np.linalg.svd(train.reshape(600, 64), full_matrices=False)[2][:24].T
    for noisy in (lambda z: z + 0.3 * np.random.default_rng(0).standard_normal(z.shape), np.round):

        def reconstruct(x, noisy=noisy):
            return (noisy(x.reshape(len(x), 64) @ basis) @ basis.T).reshape(x.shape).astype(np.float32)

        assert error_of(reconstruct(100 * others), 100 * others) < 0.9 * error_of(reconstruct(others), others)
        assert module.check_autoencoder("own", reconstruct, others) == []
