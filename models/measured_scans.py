"""Undersampled scans as training takes them: a batch of them, the image to begin with, a part of the lines held out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .channels import to_channels, to_complex
from .forward import SenseModel
from .solvers import conjugate_gradient, inner

RIDGE = 0.05
"""Of the regularised inverse that makes the image to begin with. Small enough to keep what several coils resolve,
large enough that `ITERATIONS` of CG converge: only then is the image linear in the data, as SURE wants it."""
ITERATIONS = 20
LEAST_DENSITY = 1 / 16
"""Of k-space points, where one divides by their share of all scans."""
MOST_DATA = 10.0
"""Of `consistent_images`: the data weigh at most so many times as much as the denoised image."""


@dataclass(frozen=True)
class MeasuredScans:
    """A batch of scans `y = A x + n` in the prior's scale, one image each.

    Attributes
    ----------
    kspace
        (batch, coil, y, x) complex, whitened, zero where not measured.
    mask
        (batch, y, x), or (batch, y, 1), bool.
    maps
        (batch, coil, y, x) complex of unit norm; a coil that a scan does not have is zero in maps and k-space.
    sigma
        (batch,) standard deviation of the noise in each real channel of a sample.
    """

    kspace: torch.Tensor
    mask: torch.Tensor
    maps: torch.Tensor
    sigma: torch.Tensor

    def __len__(self) -> int:
        return len(self.kspace)

    def __getitem__(self, which: slice) -> MeasuredScans:
        """Some of them."""
        return MeasuredScans(self.kspace[which], self.mask[which], self.maps[which], self.sigma[which])

    def to(self, device: torch.device | str) -> MeasuredScans:
        """The same on another device."""
        return MeasuredScans(*(part.to(device) for part in (self.kspace, self.mask, self.maps, self.sigma)))

    def model(self, mask: torch.Tensor | None = None) -> SenseModel:
        """A with the whole mask, or with other real weights (batch, y, x or 1) in its place."""
        return SenseModel(self.maps, self.mask if mask is None else mask)

    @property
    def fully_sampled(self) -> bool:
        """Whether nothing is missing in any of them."""
        return bool(self.mask.all())

    @property
    def real_entries(self) -> int:
        """Real entries of an image: what losses are a mean over."""
        return 2 * self.kspace.shape[-2] * self.kspace.shape[-1]

    def coils(self) -> torch.Tensor:
        """(batch,) how many coils each has."""
        return (self.maps != 0).flatten(2).any(-1).sum(-1)


def regularised_inverse(model: SenseModel, adjoint: torch.Tensor) -> torch.Tensor:
    """`(A^H A + RIDGE)^-1` of `A^H y` (batch, y, x)."""
    return model.solve(adjoint, RIDGE, iterations=ITERATIONS)


def first_image(
    scans: MeasuredScans, probe: torch.Tensor, spread: float, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The image that a denoiser is given of each scan, and the level that it is told.

    The image is `u = (A^H A + c)^-1 A^H y`, c = `RIDGE`. Its error is noise and what was not measured. The level,
    `sqrt(s^2 + spread^2 (1 - tr(K) / n))` with `K = (A^H A + c)^-1 A^H A`, counts the latter as a white image of that
    deviation would leave it: 0 for a full scan, `spread` where nothing is known. A denoiser that is told the noise
    alone could hardly change the image (its network's output is scaled by the level).

    Parameters
    ----------
    probe
        (batch, 2, y, x); see `divergence.rademacher`.
    spread
        Deviation of the images, of each real channel, where k-space is mostly not measured; see `missing_variance`.
    mask
        (batch, y, x or 1): use of the data these lines alone.

    Returns
    -------
    Images (batch, 2, y, x), levels (batch,).
    """
    model = scans.model(mask)
    vector = to_complex(probe)
    # one solve for both: the images and K probe
    both = torch.stack([model.H(scans.kspace), model.normal(vector)])
    image, filtered = regularised_inverse(model, both)
    kept = inner(vector, filtered, 1).flatten() / scans.real_entries
    missing = (1 - kept * (1 + RIDGE)).clamp(0, 1)  # of a full scan K is 1 / (1 + c)
    return to_channels(image), (scans.sigma**2 + spread**2 * missing).sqrt()


def missing_variance(scans: MeasuredScans, density: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Square of the `spread` of `first_image` for scans such as these, estimated from their own held-out lines.

    Images have little at high frequencies, where most is not measured: the deviation of whole images would tell a
    denoiser of an error several times too large. A part of the lines is held out; the error that the image of the
    others has on them, without the noise's share, stands for the lines that no scan measured, each by how often it is
    missing.

    Parameters
    ----------
    density
        (y, x or 1): the share of all scans that have measured each point.

    Returns
    -------
    (batch,) estimates, of each real channel. Single ones scatter, and can be negative; 0 where nothing is missing.
    """
    missing = float((1 - density).mean())
    if missing <= 0:
        return torch.zeros_like(scans.sigma)
    held = 0.25
    given = random_part(scans.mask, held, generator)
    model = scans.model(given)
    image = (1 + RIDGE) * regularised_inverse(model, model.H(scans.kspace))
    # points that are measured seldom stand for many that are missing
    weight = ((1 - density) / density.clamp_min(LEAST_DENSITY) / held).clamp_min(0)
    square, expected = misfit(scans, image, (scans.mask & ~given) * weight.sqrt())
    return (square - scans.sigma**2 * expected) / missing


def misfit(scans: MeasuredScans, image: torch.Tensor, root: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`|root (A f - y)|^2 / n` of each scan, and the trace of the weights root^2 over n: what unit noise adds to it."""
    model = scans.model(root)
    residual = model(image) - scans.kspace * model.mask.unsqueeze(-3)
    square = torch.view_as_real(residual).square().flatten(1).sum(1)
    size = scans.kspace.shape[-2:]
    trace = 2 * scans.coils() * model.mask.square().expand(len(scans), *size).flatten(1).sum(1)
    return square / scans.real_entries, trace / scans.real_entries


def consistent_images(scans: MeasuredScans, image: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """Denoised images made consistent with the data: `(q A^H A + 1) x = q A^H y + g`, as in the samplers.

    A denoised image is a mean of many, smoother than any; where the data know better they restore what it lost. q, the
    variance of g over that of the data, is `(level^2 - s^2) / s^2`: what the level counts as not measured, at most
    `MOST_DATA`, so that little of the noise comes back; 0 for full scans, whose images are left alone.

    Parameters
    ----------
    image
        g (batch, 2, y, x).
    level
        (batch,), of `first_image`.

    Returns
    -------
    (batch, 2, y, x).
    """
    model = scans.model()
    ratio = (level.square() / scans.sigma.square() - 1).clamp(0, MOST_DATA)[:, None, None]
    start = to_complex(image)
    found = conjugate_gradient(
        lambda x: ratio * model.normal(x) + x,
        ratio * model.H(scans.kspace) + start,
        start,
        iterations=10,
        batch_dims=1,
    )
    return to_channels(found)


def random_part(mask: torch.Tensor, share: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """The mask without a random `share` of its points (of its lines, where it is (..., y, 1)), each as likely as any.

    Also lines of the ACS are held out: nothing else would tell a network what is right at low frequencies.
    """
    drawn = torch.rand(mask.shape, generator=generator).to(mask.device)
    return mask & (drawn >= share)


def density_weights(density: torch.Tensor) -> torch.Tensor:
    """What makes points of k-space count as often as if all scans had measured all: 1 / (share of scans that have it).

    With these weights the error on the measured points is, over the random masks, the error of the whole image (ENSURE:
    Aggarwal et al. 2022).

    Parameters
    ----------
    density
        (y, x or 1): the share of all scans that have measured each point. Taken for no smaller than `LEAST_DENSITY`,
        so that rare points do not drown the others in noise.

    Returns
    -------
    (y, x or 1), from 1 on.
    """
    return 1 / density.clamp_min(LEAST_DENSITY)
