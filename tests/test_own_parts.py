"""Networks and schedules of the user's own, and trained runs that are given back from a workdir."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldmjax import networks, oracle, samplers, schedules, sweeps, training
from ldmjax.job import Job

VARIANCES = np.array([2.0, 0.5, 0.1])
LATENTS = {
    ("toy", 0, 400): sweeps.Latents(
        sample=np.random.default_rng(0).standard_normal((400, 3)) * np.sqrt(VARIANCES),
        fresh_factor=np.diag(np.sqrt(VARIANCES)),
    )
}


@dataclasses.dataclass(frozen=True)
class Gains:
    """A gain for every component, smooth in logsnr: it holds the exact score."""

    bumps: int = 12

    def init(self, key):
        return {"gain": 0.01 * jax.random.normal(key, (self.bumps, 3))}

    def apply(self, params, z, t):
        schedule = schedules.LinearVP()
        at = jnp.linspace(-10, 9, self.bumps)
        features = jax.nn.softmax(-0.5 * (schedule.logsnr(t)[:, None] - at) ** 2)
        return networks.precondition(lambda u: features @ params["gain"] * u, z, t, schedule=schedule)


@dataclasses.dataclass(frozen=True)
class Unfinished:
    def init(self, key):
        return {}


class Undescribed(Gains):
    __hash__ = None


def specs(model="Gains", **changes):
    own = {"model": model, "data": "toy", "training_draws": "fresh", "seed": 0, "n": 400, "learning_rate": 0.05}
    return [
        sweeps.RunSpec(latent_dim=3, **own | changes),
        sweeps.RunSpec(latent_dim=3, **own | {"learning_rate": 0.02}),
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("own")
    config = training.TrainingConfig(model=Gains(), steps=300, batch_size=256)
    job = Job(workdir / "checkpoints")
    return sweeps.train_scores(specs(), LATENTS, config, job=job), workdir


def test_a_network_of_ones_own_learns_the_exact_score(trained):
    schedule, found = schedules.LinearVP(), trained[0]
    z = jnp.asarray(np.random.default_rng(1).standard_normal((500, 3)))
    for logsnr in (-2.0, 0.0, 2.0):
        t = jnp.full(500, schedule.inverse_logsnr(logsnr))
        exact = oracle.gaussian_denoiser(VARIANCES, schedule)(z, t)
        assert np.mean((found.denoiser(0)(z, t) - exact) ** 2) < 0.02 * np.mean(exact**2)


def test_a_trained_run_is_given_back(trained):
    found, workdir = trained
    z, t = jnp.ones((4, 3)), jnp.full(4, 0.3)
    for index, spec in enumerate(found.specs):
        for where in (workdir, workdir / "checkpoints"):
            again = sweeps.load_denoiser(where, spec.name)
            np.testing.assert_array_equal(again(z, t), found.denoiser(index)(z, t))
    with pytest.raises(ValueError, match="0 runs are called 'x' .* holds Gains/toy/fresh/d3"):
        sweeps.load_denoiser(workdir, "x")


@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_runs_of_the_suites_own_models_are_given_back(tmp_path, model):
    config = training.TrainingConfig(model=model, steps=3, batch_size=8)
    runs = [dataclasses.replace(spec, latent_dim=d) for spec, d in zip(specs(model), (2, 3), strict=True)]
    found = sweeps.train_scores(runs, LATENTS, config, job=Job(tmp_path))
    z, t = jnp.ones((4, 3)), jnp.full(4, 0.3)
    for index, spec in enumerate(runs):
        np.testing.assert_array_equal(sweeps.load_denoiser(tmp_path, spec.name)(z, t), found.denoiser(index)(z, t))


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("rnn", "must be one of linear, mlp, unet, or a network, got 'rnn'"),
        (Unfinished(), "got Unfinished without apply"),
        (object(), "got object without init.key. and apply"),
        (Undescribed(), "frozen dataclass"),
    ],
)
def test_refused_networks(model, line):
    with pytest.raises(ValueError, match=line):
        training.TrainingConfig(model=model, steps=1, batch_size=1)


def test_runs_of_ones_own_network_have_one_width():
    config = training.TrainingConfig(model=Gains(), steps=1, batch_size=1)
    with pytest.raises(ValueError, match="must have one latent_dim"):
        sweeps.train_scores([specs()[0], dataclasses.replace(specs()[1], latent_dim=2)], LATENTS, config)
    with pytest.raises(ValueError, match="of model 'Gains'"):
        sweeps.train_scores(specs("mlp"), LATENTS, config)


class Constant:
    """Constant noise rate 3, by hand; ``xp`` writes it."""

    t_max = 1.0

    def __init__(self, xp):
        self.xp = xp

    def B(self, t):
        return 3.0 * self.xp.asarray(t)

    def w_squared(self, t):
        return 3.0 * self.xp.ones_like(self.xp.asarray(t))

    def alpha(self, t):
        return self.xp.exp(-self.B(t))

    def sigma(self, t):
        return self.xp.sqrt(-self.xp.expm1(-2.0 * self.B(t)))

    def logsnr(self, t):
        return -self.xp.log(self.xp.expm1(2.0 * self.B(t)))


class NoRate:
    t_max = 1.0

    def alpha(self, t):
        return 1.0 - t

    def sigma(self, t):
        return t

    def logsnr(self, t):
        return 2.0 * jnp.log((1.0 - t) / t)


THE_SUITES = schedules.LinearVP(beta_min=6.0, beta_max=6.0)


@pytest.mark.parametrize("xp", [np, jnp])
def test_a_schedule_of_ones_own_in_the_oracle(xp):
    own, times = Constant(xp), np.linspace(1.0, 0.01, 9)
    for scheme in ("euler_maruyama", "exponential", "euler_ode", "heun_ode"):
        found, expected = (
            oracle.sampler_variances(VARIANCES, schedule, times, scheme=scheme, start="standard")
            for schedule in (own, THE_SUITES)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    for call in (
        lambda schedule: oracle.bayes_noise_error(VARIANCES, schedule, times),
        lambda schedule: oracle.variance_kept(VARIANCES, schedule, 6, sampler="ddim")[1],
        lambda schedule: oracle.error_split(VARIANCES, VARIANCES, schedule, times, scheme="euler_ode")["total"],
        lambda schedule: oracle.error_split(VARIANCES, VARIANCES, schedule, times, scheme="exponential")["truncation"],
    ):
        np.testing.assert_allclose(call(own), call(THE_SUITES), rtol=1e-12)
    z, t = jnp.ones((4, 3)), jnp.asarray([0.1, 0.3, 0.5, 1.0])
    np.testing.assert_allclose(
        *(oracle.gaussian_denoiser(VARIANCES, schedule)(z, t) for schedule in (own, THE_SUITES)), rtol=1e-6
    )


def chain(schedule, sampler):
    return samplers.sample(
        oracle.gaussian_denoiser(VARIANCES, schedule),
        schedule,
        jnp.ones((2, 3)),
        jax.random.key(0),
        times=np.linspace(1.0, 0.1, 5),
        stops=[4],
        statistic=lambda z, t: z,
        sampler=sampler,
    )


@pytest.mark.parametrize("sampler", ["exponential", "ddim"])
def test_a_schedule_of_ones_own_in_a_sampler(sampler):
    np.testing.assert_allclose(chain(Constant(jnp), sampler), chain(THE_SUITES, sampler), rtol=1e-5)
    with pytest.raises(ValueError, match="Constant.* is written with numpy"):
        chain(Constant(np), sampler)


def test_what_a_schedule_lacks_is_said_at_once():
    with pytest.raises(ValueError, match=r"a variance-preserving schedule, and NoRate lacks B\(t\), w_squared\(t\)"):
        oracle.sampler_variances(VARIANCES, NoRate(), [0.5, 0.2], scheme="exponential", start="standard")
    with pytest.raises(
        ValueError, match=r"euler_ode needs .* lacks inverse_logsnr\(logsnr\), alpha_dot\(t\), sigma_dot"
    ):
        chain(NoRate(), "euler_ode")
    assert np.all(np.isfinite(chain(NoRate(), "ddim")))
    with pytest.raises(ValueError, match="object lacks alpha.t., sigma.t., logsnr.t., t_max"):
        schedules.check_schedule(object())
