"""Convolutions as an accelerator wants them against shifted copies, bfloat16 against float32, runs one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from ldmjax import chunks, convolutions, data, devices, features, latent_diffusion, metrics, sweeps, training
from ldmjax.autoencoders import AutoencoderConfig, fit
from ldmjax.autoencoders.convolutional import geometry_of
from ldmjax.autoencoders.fitting import training_program
from ldmjax.networks import RunInputs

STRIDED = functools.partial(convolutions.convolve, stride=2)
CASES = {
    "3 x 3, odd sides": (convolutions.convolve, (5, 1), (27, 5)),
    "stride 2": (STRIDED, (8, 6), (27, 5)),
    "stride 2, odd sides": (STRIDED, (7, 3), (27, 5)),
    "halving": (convolutions.halve, (8, 6), (48, 5)),
    "doubling": (convolutions.double, (4, 3), (3, 80)),
}


def operations(function, *args):
    """Products and convolutions of a function, those inside its calls and loops too; traced anew, for this platform."""

    def within(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                yield equation
            for inner in jaxprs_in_params(equation.params):
                yield from within(inner)

    return list(within(jax.make_jaxpr(lambda *args: function(*args))(*args).jaxpr))


def arrays(sides, kernel, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    maps, kernel = rng.standard_normal((4, *sides, 3)), rng.standard_normal(kernel) / np.sqrt(kernel[0])
    return jnp.asarray(maps, dtype), jnp.asarray(kernel, jnp.float32)


def with_gradients(function, maps, kernel):
    """Output, and gradients of a function of it that weighs every entry differently."""

    def traced_anew(maps, kernel):
        out, pullback = jax.vjp(function, maps, kernel)
        return out, *pullback(jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape).astype(out.dtype))

    return jax.jit(traced_anew)(maps, kernel)


@pytest.mark.parametrize("case", CASES)
def test_an_accelerators_convolution_equals_shifted_copies(case, monkeypatch):
    function, sides, kernel = CASES[case]
    inputs = arrays(sides, kernel)
    expected = with_gradients(function, *inputs)
    monkeypatch.setattr(convolutions, "LARGE", 0)
    # The name of a precision that only products have, as a GPU's process has it, is not the convolution's.
    with devices.made_for("tpu"), jax.default_matmul_precision("BF16_BF16_F32_X3"):
        (equation,) = operations(function, *inputs)
        found = with_gradients(function, *inputs)
    assert equation.primitive.name == "conv_general_dilated"
    assert set(equation.params["precision"]) == {jax.lax.Precision.HIGHEST}
    for ours, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-5)


def test_only_large_convolutions_of_an_accelerator_are_its_own():
    maps, kernel = jnp.zeros((128, 32, 32, 32)), jnp.zeros((288, 32))  # 2.4 GFLOP
    names = {}
    for platform in ("cpu", "gpu"):
        with devices.made_for(platform):
            for batch in (1, 128):
                (equation,) = operations(convolutions.convolve, maps[:batch], kernel)
                names[platform, batch] = equation.primitive.name
    assert names.pop(("gpu", 128)) == "conv_general_dilated" and set(names.values()) == {"dot_general"}


@pytest.mark.parametrize("case", ["stride 2, odd sides", "halving", "doubling"])
def test_maps_in_bfloat16_stay_so_and_kernels_gradients_are_float32(case):
    function, sides, kernel = CASES[case]
    exact = with_gradients(function, *arrays(sides, kernel))
    found = with_gradients(function, *arrays(sides, kernel, jnp.bfloat16))
    assert [x.dtype for x in found] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    for ours, expected in zip(found, exact, strict=True):
        error = np.abs(np.asarray(ours, np.float32) - expected)
        assert 1e-5 < error.max() and np.sqrt(np.mean(error**2)) < 2**-7 * np.std(expected)


def test_products_of_bfloat16_are_summed_in_float32():
    ones = jnp.ones((1, 4096), jnp.bfloat16)
    assert (
        float(jax.jit(convolutions.product)(ones, jnp.ones((4096, 1)))[0, 0]) == 4096
    )  # in bfloat16 the sum stops at 256


def unet_config(**changes):
    sampling = latent_diffusion.SamplingConfig()
    size = {"model": "unet", "map_shape": (8, 8, 1), "channels": (4, 8), "steps": 20, "batch_size": 16}
    return training.TrainingConfig(**size | {"schedule": sampling.schedule, **sampling.trained_range} | changes)


def unet_parts(config):
    """Its structure, and the shapes of its parameters."""
    return nnx.split(nnx.eval_shape(lambda: training.make_network(config, 64, jax.random.key(0), 64)))


def test_a_bfloat16_unet_multiplies_maps_in_bfloat16_and_keeps_the_rest_in_float32():
    for precision in convolutions.PRECISIONS:
        config = unet_config(precision=precision)
        graphdef, params = unet_parts(config)
        assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}

        def raw(params, u, times, graphdef=graphdef):
            return nnx.merge(graphdef, params).raw(u, times)

        inputs = jax.tree.map(jnp.zeros_like, params), jnp.zeros((2, 64)), jnp.zeros((2, 16))
        products = operations(raw, *inputs)
        of_time = [e for e in products if e.outvars[0].aval.ndim == 2]
        of_maps = [e for e in products if e.outvars[0].aval.ndim == 4]
        assert {e.outvars[0].aval.dtype.name for e in of_time} == {"float32"} and len(of_time) == 7
        assert {e.outvars[0].aval.dtype.name for e in of_maps} == {precision} and len(of_maps) == 10
        assert jax.eval_shape(raw, *inputs).dtype == jnp.float32


def runs_at_once(make):
    """What `sweeps.train_scores` or an autoencoder's training would put on one accelerator at once, by default."""
    with devices.made_for("gpu"):
        return make().runs_per_batch


def autoencoder_program(image_shape, **options):
    config = AutoencoderConfig(kind="conv", **options)
    return training_program(config, geometry_of(image_shape, (4, 4, 2), downsampling=4), None)


def test_large_networks_train_one_after_another(monkeypatch):
    class Started(Exception):
        pass

    def start(advance, *args, **options):
        raise Started(advance)

    monkeypatch.setattr(chunks, "run_training", start)

    def program(config, dim):
        spec = {"model": config.model, "data": "a", "training_draws": "sample", "latent_dim": dim, "seed": 0, "n": 2}
        latents = sweeps.Latents(sample=np.ones((2, dim), np.float32), fresh_factor=np.zeros((dim, 0)))
        with pytest.raises(Started) as found:
            sweeps.train_scores([sweeps.RunSpec(**spec, learning_rate=0.1)], {("a", 0, 2): latents}, config)
        return found.value.args[0]

    large = unet_config(map_shape=(32, 32, 3), channels=(32, 64, 128), batch_size=128)
    assert runs_at_once(lambda: program(large, 3072)) == 1
    assert runs_at_once(lambda: program(unet_config(), 64)) > 1000
    assert runs_at_once(lambda: autoencoder_program((16, 16, 3), channels=256)) == 1
    assert runs_at_once(lambda: autoencoder_program((8, 8, 1))) > 1000
    assert program(unet_config(), 64).runs_per_batch == autoencoder_program((16, 16, 1)).runs_per_batch == 1  # on a CPU


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: unet_config(precision="float16"), "one of float32, bfloat16, got 'float16'"),
        (lambda: AutoencoderConfig(kind="kl", precision="tf32"), "one of float32, bfloat16, got 'tf32'"),
        (lambda: training.TrainingConfig(model="mlp", steps=1, batch_size=1, precision="bfloat16"), "is the U-Net's"),
        (
            lambda: training.TrainingConfig(model="linear", steps=1, batch_size=1, precision="bfloat16"),
            "is the U-Net's",
        ),
    ],
)
def test_precisions_that_a_model_does_not_have_are_refused(make, line):
    with pytest.raises(ValueError, match=line):
        make()


def test_records_name_every_precision_in_use():
    used = functools.partial(latent_diffusion.precision_used, asked="bfloat16")
    assert used("identity", "unet") == used("kl", "unet") == used("vq") == "bfloat16"
    assert used("identity", "mlp") == used("pca", "mlp") == used("pca") == "float32"
    assert used("conv", "mlp") == used("pca", "conv", "mlp") == "bfloat16 and float32"
    assert latent_diffusion.precision_used("conv", "unet", asked="float32") == "float32"


def test_a_bfloat16_unet_has_float32s_loss():
    """On digits at every noise level, with parameters that are not those of the start, where the network is 0."""
    images = data.digits().samples[:256]
    run = RunInputs(jnp.ones(64), jnp.asarray(jnp.inf), jnp.asarray(images.std(), jnp.float32))
    losses = []
    for precision in convolutions.PRECISIONS:
        config = unet_config(channels=(8,), precision=precision)
        graphdef, shapes = unet_parts(config)
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda x, rng=rng: rng.normal(0.0, 0.1, x.shape).astype(np.float32), shapes)

        def loss(params, config=config, graphdef=graphdef):
            noising = training.choose_noising(jax.random.key(1))
            network = nnx.merge(graphdef, params)
            x0 = jnp.asarray(images, jnp.float32)
            return training.batch_loss(config, network, run, x0, noising, dim=jnp.asarray(64.0))

        losses.append(float(jax.jit(loss)(params)))
    assert losses[0] != losses[1] and abs(losses[1] / losses[0] - 1) < 0.01


def distances_of(images, split):
    """Squared Fréchet distances of pixels ``[BLOCKS]`` to held-out images; their spread gives the jackknife's error."""
    pixels = features.load("pixels", data.digits())
    reference = metrics.FeatureReference(pixels(split.reference), metrics=("w2",), blocks=latent_diffusion.BLOCKS)
    return latent_diffusion.distances_of(images, {"pixels": metrics.Measure(pixels, reference)})["pixels", "w2"]


def autoencoder_in(precision, *, n, steps, **size):
    """Late loss of a convolutional autoencoder of digits, and distances of what it makes of its training images."""
    split = latent_diffusion.split_images(data.digits(), n=n, reference=700, seed=0)
    config = AutoencoderConfig(kind="conv", steps=steps, precision=precision, **size)
    (made,) = fit(split.train, [(16,)], config, seeds=[0])
    return made.losses[len(made.losses) // 2 :].mean(), distances_of(made.decode(made.encode(split.train)), split)


def unet_in(precision, *, n, steps, samples):
    """Late loss of a U-Net on digits' pixels, and distances of what it generates."""
    sampling = latent_diffusion.SamplingConfig(samples=samples, steps=50, stops=2)
    split = latent_diffusion.split_images(data.digits(), n=n, reference=700, seed=0)
    pixels = fit(split.train, [(8, 8)], AutoencoderConfig(kind="identity"), seeds=[0])
    config = unet_config(channels=(8, 16), steps=steps, batch_size=64, precision=precision)
    (model,) = latent_diffusion.train_models(pixels, [config], [split], seeds=[0])
    losses = model.trained.losses[0]
    generated = model.decode(latent_diffusion.sample_states(model, sampling)[-1])
    return losses[len(losses) // 2 :].mean(), distances_of(generated, split)


@pytest.mark.parametrize(
    ("trained_in", "size"),
    [
        (autoencoder_in, {"n": 300, "steps": 50, "channels": 8, "downsampling": 2}),
        pytest.param(autoencoder_in, {"n": 1000, "steps": 1500}, marks=pytest.mark.slow),
        pytest.param(unet_in, {"n": 1000, "steps": 2000, "samples": 2048}, marks=pytest.mark.slow),
    ],
)
def test_bfloat16_learns_what_float32_learns(trained_in, size):
    (loss, distances), (rounded, of_rounded) = (trained_in(precision, **size) for precision in convolutions.PRECISIONS)
    assert loss != rounded and abs(rounded / loss - 1) < 0.01
    assert abs(of_rounded.mean() - distances.mean()) < distances.std(ddof=1) / np.sqrt(len(distances))
