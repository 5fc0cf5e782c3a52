"""What a VAE prior makes of a scan: one objective in the image and the latents (Duff et al. 2023, eq. 5 and 12).

    f(x, z) = ||A x - y||^2 / (2 gamma^2) + lam (nll(x; z) + mu ||z||^2 / 2),
    nll(x; z) = -sum_i log L_ii + 1/2 ||L^T (x - G(z))||^2, L = L(z)

(The paper's eq. 10 doubles the log-determinant and writes L for L^T.) With lam = mu = 1 it is, but for a constant,
minus the logarithm of the posterior of x and z.

Its lowest point is not where the latents are most probable. At the x that is best for z, the term in -log det L has
nothing against it in the directions that no sample measures, and draws z to where the prior is surest, whatever the
data say. Were x integrated out instead of maximised, it would have: but for a constant,

    -log p(y|z) = min_x f(x, z) at lam = 1, mu = 0, + 1/2 log det (A^H A / gamma^2 + L L^T).

Along covariances that differ by a factor, that last term rises by exactly (1 - share) for each unit of log det L:
`share` is the data's effective number of degrees of freedom (MacKay, Neural Computation 1992) over the numbers of the
image. So with `VAEObjective.share` set, -log det L is weighted by it. That is no integral: along covariances that
differ otherwise the slope is another one, and the share is kept where it was measured, at the latents of the first
image. lam scales the precision and the latents' own prior, and not log det L then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from .forward import SenseModel
from .solvers import conjugate_gradient


class Precision(Protocol):
    """The Cholesky factor L of a precision, of real images (batch, parts, y, x); see `precision.CholeskyFactor`."""

    def transposed(self, e: torch.Tensor) -> torch.Tensor:
        """L^T e."""

    def product(self, u: torch.Tensor) -> torch.Tensor:
        """L u."""

    def precision(self, e: torch.Tensor) -> torch.Tensor:
        """L L^T e."""

    def log_det(self) -> torch.Tensor:
        """(batch,): sum of log L_ii."""

    def diagonal(self) -> torch.Tensor:
        """(batch, parts, y, x): L_ii."""


class VAEPrior(Protocol):
    """What the reconstruction needs of a prior of the family `vae`. Images are real, in the prior's own scale.

    Attributes
    ----------
    parts
        1: the image is real once its smooth phase is taken out; 2: (Re, Im).
    size
        Edge of the images of a prior with dense latents; None: images of any size.
    demodulated
        Whether a prior of two parts wants the smooth phase taken out first.
    """

    name: str
    parts: int
    size: int | None
    demodulated: bool

    @property
    def scale(self) -> tuple[float, float]:
        """(percentile, value): which percentile of a magnitude image has which value in the prior's scale."""

    def for_shape(self, shape: tuple[int, int]) -> VAEPrior:
        """This prior for images (y, x): latents alone may not tell the size to the pixel."""

    def latent_shape(self, shape: tuple[int, int]) -> tuple[int, ...]:
        """Shape of the latents of one image (y, x)."""

    def encode(self, e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and logarithm of the variance of the latents (batch, *latent) of images (batch, parts, y, x)."""

    def decode(self, z: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """G(z) (batch, parts, y, x), and the `Precision` of the images around it."""


@dataclass
class Decoded:
    """What the decoders say for latents `z` (element, set, *latent), with the graph to differentiate it by.

    Attributes
    ----------
    mean
        G(z), (element * set, parts, y, x).
    factor
        L(z) of each of these images.
    """

    z: torch.Tensor
    mean: torch.Tensor
    factor: Precision


class VAEObjective:
    """f(x, z) for a batch of elements, each with a value of its own: the slices of a scan, several copies of each.

    Images here are real, (element, set, parts, y, x), in the prior's scale; the sets of maps of a slice are images of
    their own to the prior, which the data term couples. One value belongs to one element: nothing is mixed.

    Parameters
    ----------
    model, kspace
        A and y in the prior's scale, y (..., coil, y, x).
    phase
        Factors of modulus 1 that turn the real images into those of the scan, of the shape of `model.H(kspace)`; None
        for 1.
    gamma
        Standard deviation of the noise in each real channel of `kspace`.
    copies
        How many starting points each slice has.

    Attributes
    ----------
    evaluations
        Evaluations of the decoders for one element, counted.
    share
        (element,): weight of -log det L in the place of lam, as of `measured_share`; None: lam, as in f.
    """

    def __init__(
        self, prior: VAEPrior, model: SenseModel, kspace: torch.Tensor, phase: torch.Tensor | None, gamma: float,
        lam: float, mu: float, copies: int = 1,
    ) -> None:  # fmt: skip
        rows, columns = model.maps.shape[-2:]
        self.prior = prior.for_shape((rows, columns))
        self.model, self.kspace, self.phase = model, kspace, phase
        self.gamma, self.lam, self.mu, self.copies = gamma, lam, mu, copies
        adjoint = model.H(kspace)
        self._event = len(model.image_shape)
        self._lead = (copies, *adjoint.shape[: adjoint.ndim - self._event])
        self.elements = math.prod(self._lead)
        self.sets = model.image_shape[0] if model.sets else 1
        self.adjoint = self.to_real(adjoint.expand(copies, *adjoint.shape))
        # of A^H A on average: what the preconditioner of `image` takes for its diagonal
        self._sampled = float(model.mask.square().mean())
        self.evaluations = 0
        self.share: torch.Tensor | None = None

    def to_complex(self, x: torch.Tensor) -> torch.Tensor:
        """Images of the scan (copy, ..., y, x), or (copy, ..., set, y, x)."""
        plain = x[:, :, 0] if self.prior.parts == 1 else torch.complex(x[:, :, 0], x[:, :, 1])
        plain = plain.reshape(*self._lead, *self.model.image_shape)
        return plain.to(self.kspace.dtype) if self.phase is None else self.phase * plain

    def to_real(self, image: torch.Tensor) -> torch.Tensor:
        """Adjoint of `to_complex`, on real spaces: turned by the phase, and the real part where that is all."""
        plain = image if self.phase is None else self.phase.conj() * image
        plain = plain.reshape(self.elements, self.sets, *image.shape[-2:])
        channels = [plain.real] if self.prior.parts == 1 else [plain.real, plain.imag]
        return torch.stack(channels, 2)

    def normal(self, x: torch.Tensor) -> torch.Tensor:
        """A^H A of these real images."""
        return self.to_real(self.model.normal(self.to_complex(x)))

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """Variance of the latents (element, set, *latent) that the encoder gives images."""
        with torch.no_grad():
            _, log_var = self.prior.encode(x.flatten(0, 1))
        return log_var.exp().reshape(self.latent_shape)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Mean of the latents (element, set, *latent) that the encoder gives images.

        Raises
        ------
        ValueError
            If the encoder's latents are not of the shape that the prior says.
        """
        with torch.no_grad():
            mean, _ = self.prior.encode(x.flatten(0, 1))
        shape = self.latent_shape
        expected = (self.elements * self.sets, *shape[2:])
        if tuple(mean.shape) != expected:
            raise ValueError(
                f"prior {self.prior.name!r}: expected latents {expected} of its encoder, got {tuple(mean.shape)}"
            )
        return mean.reshape(shape)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(element, set, *latent)."""
        rows, columns = self.model.maps.shape[-2:]
        return (self.elements, self.sets, *self.prior.latent_shape((rows, columns)))

    def decode(self, z: torch.Tensor) -> Decoded:
        """Evaluate the decoders at `z` (element, set, *latent).

        Raises
        ------
        ValueError
            If the prior's images are not of the size of the scan's.
        """
        self.evaluations += 1
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            mean, factor = self.prior.decode(z.flatten(0, 1))
        rows, columns = self.model.maps.shape[-2:]
        expected = (self.elements * self.sets, self.prior.parts, rows, columns)
        if tuple(mean.shape) != expected:
            raise ValueError(f"prior {self.prior.name!r}: expected an image {expected}, got {tuple(mean.shape)}")
        return Decoded(z, mean, factor)

    def data_term(self, x: torch.Tensor) -> torch.Tensor:
        """||A x - y||^2 / (2 gamma^2), (element,), in double precision."""
        residual = torch.view_as_real(self.model(self.to_complex(x)) - self.kspace)
        return residual.double().square().sum((-4, -3, -2, -1)).reshape(-1) / (2 * self.gamma**2)

    def prior_term(self, x: torch.Tensor, decoded: Decoded) -> torch.Tensor:
        """lam (nll(x; z) + mu ||z||^2 / 2), (element,), in double precision; log det L has `share`, if any, for lam."""
        white = decoded.factor.transposed(x.flatten(0, 1) - decoded.mean)
        square = white.double().square().reshape(self.elements, -1).sum(1) / 2
        log_det = decoded.factor.log_det().double().reshape(self.elements, self.sets).sum(1)
        latents = decoded.z.double().square().flatten(1).sum(1) / 2
        weight = self.lam if self.share is None else self.share
        return self.lam * (square + self.mu * latents) - weight * log_det

    def value(self, x: torch.Tensor, decoded: Decoded) -> torch.Tensor:
        """f(x, z), (element,), in double precision."""
        with torch.no_grad():
            return self.data_term(x) + self.prior_term(x, decoded)

    def latent_gradient(self, x: torch.Tensor, decoded: Decoded) -> tuple[torch.Tensor, torch.Tensor]:
        """f(x, z) (element,), and its gradient in z (element, set, *latent).

        At x that minimises f(., z), that is the gradient of min_x f(x, z) too (the envelope theorem).
        """
        with torch.enable_grad():
            term = self.prior_term(x, decoded)
            (gradient,) = torch.autograd.grad(term.sum(), decoded.z, retain_graph=True)
        with torch.no_grad():
            return self.data_term(x) + term, gradient

    def image_gradient(self, x: torch.Tensor, decoded: Decoded) -> torch.Tensor:
        """Gradient of f in x, (element, set, parts, y, x)."""
        with torch.no_grad():
            pull = decoded.factor.precision(x.flatten(0, 1) - decoded.mean).reshape(x.shape)
            return (self.normal(x) - self.adjoint) / self.gamma**2 + self.lam * pull

    def image(self, start: torch.Tensor, decoded: Decoded, iterations: int, tolerance: float) -> torch.Tensor:
        """Towards the x that minimises f(., z), by CG from `start`: it never raises f.

        Solves `(A^H A / gamma^2 + lam L L^T) x = A^H y / gamma^2 + lam L L^T G(z)`.
        """
        with torch.no_grad():
            ridge = self.lam * self.gamma**2
            pull = decoded.factor.precision(decoded.mean).reshape(start.shape)
            return self._solve(self.adjoint + ridge * pull, start, decoded, iterations, tolerance)

    def draw(
        self, x: torch.Tensor, decoded: Decoded, generator: torch.Generator, iterations: int, tolerance: float
    ) -> torch.Tensor:
        """Draws of the Gaussian that the posterior of x is for this z, one for each copy, around its mean `x`.

        `x` and `decoded` are those of one copy, of which (element, set, parts, y, x) are drawn.

        Perturb and optimise (Papandreou and Yuille, NeurIPS 2010): with unit white noise n1 in k-space and n2 in the
        image, `(A^H A / gamma^2 + lam L L^T)^-1 (A^H n1 / gamma + sqrt(lam) L n2)` has exactly its covariance, as far
        as CG is converged.
        """
        with torch.no_grad():
            n1 = torch.randn((self.copies, *self.kspace.shape, 2), generator=generator, dtype=x.dtype)
            n2 = torch.randn((self.copies, *decoded.mean.shape), generator=generator, dtype=x.dtype)
            data = self.to_real(self.model.H(torch.view_as_complex(n1).to(x.device)))
            prior = decoded.factor.product(n2.to(x.device)).reshape(data.shape)
            rhs = self.gamma * data + math.sqrt(self.lam) * self.gamma**2 * prior
            residual = self._solve(rhs, torch.zeros_like(rhs), decoded, iterations, tolerance)
            return residual + x.repeat(self.copies, 1, 1, 1, 1)

    def measured_share(
        self, decoded: Decoded, generator: torch.Generator, iterations: int, tolerance: float
    ) -> torch.Tensor:
        """How many of the image's numbers the data decide rather than the prior, over how many there are: (element,).

        `tr(A^H A / gamma^2 M^-1) / n` with `M = A^H A / gamma^2 + lam L L^T`, from one random vector (Hutchinson 1990):
        its error is that of a mean over n numbers.
        """
        with torch.no_grad():
            u = torch.randn(decoded.mean.shape, generator=generator, dtype=decoded.mean.dtype).to(decoded.mean.device)
            rhs = decoded.factor.product(u).reshape(self.elements, self.sets, *decoded.mean.shape[1:])
            solution = self._solve(rhs, torch.zeros_like(rhs), decoded, iterations, tolerance)
            of_prior = (rhs * solution).double().reshape(self.elements, -1).sum(1) * self.lam * self.gamma**2
            return (1 - of_prior / u.double().square().reshape(self.elements, -1).sum(1)).clamp(0, 1)

    def _solve(
        self, rhs: torch.Tensor, start: torch.Tensor, decoded: Decoded, iterations: int, tolerance: float
    ) -> torch.Tensor:
        """(A^H A + lam gamma^2 L L^T) x = rhs, with a diagonal preconditioner: L differs much over the image."""
        ridge = self.lam * self.gamma**2
        factor, images = decoded.factor, decoded.mean.shape
        # as many images in a copy as the factor has, whatever copies there are
        root = (self._sampled + ridge * factor.diagonal().square()).rsqrt()
        root = root.expand(rhs.numel() // root.numel(), *images).reshape(rhs.shape)

        def system(u: torch.Tensor) -> torch.Tensor:
            x = root * u
            pull = factor.precision(x.reshape(-1, *images)).reshape(x.shape)
            return root * (self.normal(x) + ridge * pull)

        solution = conjugate_gradient(
            system, root * rhs, start / root, iterations=iterations, tolerance=tolerance, batch_dims=1
        )
        return root * solution
