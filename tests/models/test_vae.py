"""VAE priors: shapes of any size, the evidence bound against a linear case, the file, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scanprior.models import prior as prior_module
from scanprior.models.cholesky_stencil import coefficient_channels
from scanprior.models.precision import CholeskyFactor
from scanprior.models.prior import PriorError, load_any_prior, load_prior
from scanprior.models.vae import VAE, elbo_terms, kl_to_standard
from scanprior.models.vae_prior import VAEPrior, build_vae, save_vae
from scanprior.models.weights_file import write_weights

DENSE: dict[str, Any] = {"parts": 1, "size": 16, "latent": 5, "widths": (4, 6), "middle": 8}
LOCAL: dict[str, Any] = {"parts": 2, "size": None, "latent": 3, "widths": (4, 6), "middle": 8, "neighbourhood": 3}


def shaken(arguments: dict[str, Any], seed: int = 0) -> VAE:
    """A VAE whose covariance decoder no longer begins at zero."""
    torch.manual_seed(seed)
    vae = build_vae(arguments)
    for weight in vae.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    return vae.eval().requires_grad_(False)


def prior_of(arguments: dict[str, Any]) -> VAEPrior:
    return VAEPrior(shaken(arguments), "toy", network=arguments)


@pytest.mark.parametrize("covariance", ["identity", "diagonal", "structured"])
@pytest.mark.parametrize("arguments", [DENSE, LOCAL], ids=["dense", "local"])
def test_shapes_and_gradients(arguments: dict[str, Any], covariance: str) -> None:
    prior = prior_of(arguments | {"covariance": covariance})
    shape = (16, 16) if prior.size else (13, 18)
    assert (prior.family, prior.covariance) == ("vae", covariance)
    prior.warm_up(shape)
    images = torch.randn(2, prior.parts, *shape)
    mean, log_var = prior.encode(images)
    assert mean.shape == log_var.shape == (2, *prior.latent_shape(shape))
    z = mean.clone().requires_grad_(True)
    bound = prior.for_shape(shape)
    decoded, factor = bound.decode(z)
    assert decoded.shape == images.shape
    assert factor.shape == images.shape
    (factor.nll(images - decoded)).sum().backward()
    assert z.grad is not None
    assert float(z.grad.abs().min()) > 0, "every latent number acts on the likelihood"
    again, factor_again = bound.decode(mean)
    torch.testing.assert_close(again, decoded.detach(), rtol=0, atol=0)
    torch.testing.assert_close(factor_again.values, factor.values.detach(), rtol=0, atol=0)
    low, high = prior.vae.bounds
    assert float(factor.diagonal().detach().min()) >= low
    assert float(factor.diagonal().detach().max()) <= high


def test_odd_sizes_are_padded_inside_and_only_a_local_prior_takes_them() -> None:
    local, dense = prior_of(LOCAL), prior_of(DENSE)
    images = torch.randn(1, 2, 13, 18)
    padded = torch.nn.functional.pad(images, (0, 2, 0, 3), mode="reflect")
    torch.testing.assert_close(local.encode(images)[0], local.encode(padded)[0])
    z = local.encode(images)[0]
    assert z.shape == (1, 3, 4, 5)
    assert local.mean(z).shape == (1, 2, 16, 20), "a latent map alone does not tell the image's size"
    torch.testing.assert_close(local.for_shape((13, 18)).mean(z), local.mean(z)[..., :13, :18])
    whole, cropped = local.factor(z), local.for_shape((13, 18)).factor(z)
    torch.testing.assert_close(cropped.values, whole.values[..., :13, :18])
    for call in (
        lambda: dense.latent_shape((13, 18)),
        lambda: dense.for_shape((13, 18)),
        lambda: dense.warm_up((13, 18)),
    ):
        with pytest.raises(ValueError, match="prior 'toy': expected images of 16x16, found 13x18"):
            call()
    with pytest.raises(ValueError, match="expected images of 16x16, found 13x18"):
        dense.encode(torch.zeros(1, 1, 13, 18))
    with pytest.raises(ValueError, match=r"expected images \(batch, 1, y, x\), found \(1, 2, 16, 16\)"):
        dense.encode(torch.zeros(1, 2, 16, 16))
    with pytest.raises(ValueError, match=r"expected a latent \(batch, 5\), found \(2, 4\)"):
        dense.mean(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"expected a latent \(batch, 3, y, x\), found \(2, 3\)"):
        local.factor(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"expected a latent \(batch, 3, 4, 5\) for images of 13x18"):
        local.for_shape((13, 18)).mean(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("neighbourhood", [3, 5])
def test_a_new_structured_covariance_is_the_identity_of_rho(parts: int, neighbourhood: int) -> None:
    """So the second stage begins with the likelihood that the first one ended with."""
    torch.manual_seed(0)
    vae = VAE(**(LOCAL | {"parts": parts, "neighbourhood": neighbourhood}))
    vae.identity.data += 0.2
    e, z = torch.randn(2, parts, 8, 8), torch.randn(2, 3, 2, 2)
    factor = vae.factor(z)
    assert factor.values.shape == (2, coefficient_channels(parts, neighbourhood), 8, 8)
    rate = vae.identity_diagonal()
    torch.testing.assert_close(factor.nll(e), 0.5 * rate**2 * e.square().sum((1, 2, 3)) - e[0].numel() * rate.log())


def test_couplings_scale_with_the_diagonal_of_their_column() -> None:
    """L = M D: with the diagonal doubled everywhere, L^T e is doubled, whatever the couplings."""
    vae = shaken(LOCAL)
    z, e = torch.randn(1, 3, 2, 2), torch.randn(1, 2, 8, 8)
    first = vae.factor(z)
    scaled = first.transposed(e) / first.diagonal()
    middle = math.log(vae.bounds[0] * vae.bounds[1]) / 2
    vae.bounds = (math.exp(middle - 0.1), math.exp(middle + 0.1))
    second = vae.factor(z)
    assert not torch.allclose(first.diagonal(), second.diagonal(), rtol=0.1)
    torch.testing.assert_close(second.transposed(e) / second.diagonal(), scaled)


class LinearVAE:
    """G(z) = W z with orthogonal columns and Sigma = I / rate^2: then q of the evidence bound can be exact."""

    def __init__(self, rate: float) -> None:
        columns = torch.linalg.qr(torch.randn(24, 3, dtype=torch.float64)).Q
        self.columns, self.rate = columns * torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64), rate

    def mean(self, z: torch.Tensor) -> torch.Tensor:
        return (z @ self.columns.T).reshape(-1, 1, 4, 6)

    def factor(self, z: torch.Tensor, shape: tuple[int, int] | None = None) -> CholeskyFactor:
        return CholeskyFactor(torch.full((len(z), 1, 4, 6), self.rate, dtype=torch.float64), 1, 1)


def test_the_evidence_bound_is_the_evidence_where_q_is_the_posterior() -> None:
    torch.manual_seed(1)
    vae = LinearVAE(rate=3.0)
    e = torch.randn(1, 1, 4, 6, dtype=torch.float64)
    precision = 1 + vae.rate**2 * vae.columns.square().sum(0)  # diagonal
    mean = (vae.rate**2 * e.reshape(1, -1) @ vae.columns) / precision
    log_var = -precision.log()[None]
    # the likelihood is quadratic in z: these six points average it exactly
    steps = torch.diag((3 / precision).sqrt())
    terms = [elbo_terms(vae, e, mean + step, mean, log_var) for step in torch.cat([steps, -steps])]  # type: ignore[arg-type]
    negative_elbo = torch.stack([nll for nll, _ in terms]).mean() + terms[0][1][0]
    covariance = vae.columns @ vae.columns.T + torch.eye(24, dtype=torch.float64) / vae.rate**2
    evidence = torch.distributions.MultivariateNormal(torch.zeros(24, dtype=torch.float64), covariance)
    torch.testing.assert_close(negative_elbo, -evidence.log_prob(e.reshape(-1)))


def test_kl_by_hand() -> None:
    mean, log_var = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, math.log(4.0)]])
    assert float(kl_to_standard(mean, log_var)) == pytest.approx(0.5 + 0.5 * (4 - 1 - math.log(4)))
    normals = [torch.distributions.Normal(1.0, 1.0), torch.distributions.Normal(0.0, 2.0)]
    standard = torch.distributions.Normal(0.0, 1.0)
    total = sum(float(torch.distributions.kl_divergence(one, standard)) for one in normals)
    assert float(kl_to_standard(mean, log_var)) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize(
    "arguments", [DENSE | {"principal": 16}, LOCAL | {"principal": 4, "latent": 5}], ids=["dense", "local"]
)
def test_principal_components_are_the_linear_optimum(arguments: dict[str, Any]) -> None:
    """Images of as many components as the latent has come back exactly; z has variance 1, q that of the posterior."""
    torch.manual_seed(0)
    vae, rho, parts = build_vae(arguments), 0.01, arguments["parts"]
    edge = 16 if arguments["size"] else 4
    components = torch.randn(5, parts, edge, edge)
    weights = torch.randn(100, 5) * torch.tensor([3.0, 2.0, 1.5, 1.0, 0.5])
    images = torch.einsum("nk,kpyx->npyx", torch.cat([weights, -weights]), components)
    vae.begin_with_components(images, rho)
    z, log_var = vae.encode(images)
    torch.testing.assert_close(vae.mean(z), images, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(z.flatten(1).square().mean(0), torch.ones(5), rtol=1e-3, atol=1e-3)
    linear = vae.mean_decoder.linear
    assert linear is not None
    columns = linear.weight.reshape(-1, 5) if arguments["size"] else linear.weight.reshape(5, -1).T
    precision = torch.eye(5) + columns.T @ columns / rho
    found = -log_var.detach().flatten(1).mean(0)
    # the other layers have their say in log_var from the start, but a small one
    torch.testing.assert_close(found, precision.inverse().diagonal().log().neg(), rtol=0.05, atol=0.5)
    with pytest.raises(ValueError, match="expected more than 5 images for as many components, found 4"):
        vae.begin_with_components(images[:4], rho)
    with pytest.raises(ValueError, match="no linear layers: expected principal above 0"):
        build_vae(arguments | {"principal": 0}).begin_with_components(images, rho)


@pytest.mark.parametrize("arguments", [DENSE, LOCAL], ids=["dense", "local"])
def test_a_file_gives_the_prior_back(arguments: dict[str, Any], tmp_path: Path) -> None:
    prior = prior_of(arguments)
    path = tmp_path / "toy.safetensors"
    save_vae(path, prior.vae, {"network": arguments, "scale": (99.0, 2.0), "demodulated": False, "step": 7})
    loaded = load_any_prior(str(path))
    assert isinstance(loaded, VAEPrior)
    assert (loaded.name, loaded.scale, loaded.demodulated) == ("toy", (99.0, 2.0), False)
    assert loaded.vae.identity == prior.vae.identity
    assert not any(weight.requires_grad for weight in loaded.vae.parameters())
    z = torch.randn(2, *prior.latent_shape((16, 16)))
    for mine, theirs in zip(
        (prior.mean(z), prior.factor(z).values), (loaded.mean(z), loaded.factor(z).values), strict=True
    ):
        # float16 in the file
        torch.testing.assert_close(theirs, mine, rtol=0.02, atol=0.02 * float(mine.std()))
    save_vae(tmp_path / "again.safetensors", loaded.vae, {"network": arguments})
    twice = load_any_prior(str(tmp_path / "again.safetensors"))
    for key, value in loaded.weights().items():
        assert torch.equal(value, twice.weights()[key]), key
    assert loaded.facts() != replace(loaded, demodulated=True).facts()
    with pytest.raises(PriorError, match="is of the family 'vae', expected a diffusion prior"):
        load_prior(str(path))


def test_autocast_computes_in_its_type_and_hands_out_float32() -> None:
    prior = prior_of(DENSE)
    z = torch.randn(2, 5)
    exact = prior.mean(z)
    prior.autocast = torch.bfloat16
    rough = prior.mean(z)
    assert rough.dtype == prior.factor(z).values.dtype == prior.encode(rough)[0].dtype == torch.float32
    assert 0 < float((rough - exact).abs().max()) < 0.05 * float(exact.abs().max())


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    vae, path = shaken(DENSE), tmp_path / "bad.safetensors"

    def refused(description: dict[str, Any], match: str) -> None:
        write_weights(path, "scanprior-vae-1", vae.state_dict(), description)
        with pytest.raises(PriorError, match=match):
            load_any_prior(str(path))

    good = {"network": DENSE, "scale": (99.5, 1.0), "demodulated": True}
    refused({"network": DENSE, "demodulated": True}, "bad.safetensors: its description .* scale: Field required")
    refused(good | {"scale": (0, 1)}, r"expected \[percentile up to 100, value above 0\], found \[0.0, 1.0\]")
    refused(good | {"network": DENSE | {"depth": 3}}, "network 'vae' has no argument 'depth'; there are: parts, size")
    refused(good | {"network": DENSE | {"latent": 6}}, "weights do not fit the network it describes")
    refused(good | {"network": DENSE | {"widths": "wide"}}, "cannot be made with")
    refused(good | {"demodulated": "perhaps"}, "demodulated: .* found 'perhaps'")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"parts": 3}, r"expected 1 part \(real images\) or 2 \(real, imaginary\), found 3"),
        ({"covariance": "full"}, "covariance 'full' is not known; there are: identity, diagonal, structured"),
        ({"neighbourhood": 7}, "expected a neighbourhood of 3 or 5 for a structured covariance, found 7"),
        ({"size": 18}, r"expected a size that is a multiple of 4 \(2 widths\), found 18"),
        ({"latent": 0}, "found latent 0"),
        ({"principal": 7}, "expected principal 0 or divisor of 16, found 7"),
        ({"size": None, "principal": 8}, "expected principal 0 or 4, found 8"),
        ({"diagonal": (2.0, 1.0)}, r"both above 0, found \[2.0, 1.0\]"),
        ({"size": None, "covariance_widths": (4,)}, "expected 2 covariance_widths, as many as widths, found 1"),
    ],
)
def test_arguments_that_do_not_do(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build_vae(DENSE | change)


def test_the_published_sizes_can_be_had() -> None:
    with torch.device("meta"):
        vae = VAE()
    assert vae.latent_shape((128, 128)) == (100,)
    assert vae.mean_decoder.coarse == 8
    assert vae.covariance_decoder is not None
    assert vae.covariance_decoder.leave.out_channels == 13


def test_released_priors_share_a_mean_and_fit_their_cards() -> None:
    structured, others = load_any_prior("vae-128"), [load_any_prior(f"vae-128-{k}") for k in ("identity", "diagonal")]
    for other in others:
        for key, value in other.weights().items():
            if not key.startswith("covariance_decoder"):
                assert torch.equal(value, structured.weights()[key]), key
    assert [prior.covariance for prior in (structured, *others)] == ["structured", "identity", "diagonal"]
    assert structured.for_shape((128, 128)).mean(torch.zeros(1, 100)).shape == (1, 1, 128, 128)
    local = load_any_prior("vae")
    assert (local.parts, local.neighbourhood, local.size, local.demodulated) == (2, 3, None, True)
    folder = Path(prior_module.__file__).parent / "weights"
    for path in folder.glob("vae*.safetensors"):
        assert path.stat().st_size < 16e6
        assert path.with_suffix(".md").is_file()
