"""Search in the range of a VAE's mean decoder (Bora et al. 2017): the image is one that the generator can make.

What Duff et al. 2023 compare their method with; `narnhofer` goes on from here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pydantic import Field

from .forward import SenseModel
from .least_squares import sample_count
from .linear import combine_sets
from .posterior import pieces
from .scan import Progress, Reconstruction, Scan
from .vae_objective import VAEObjective, VAEPrior
from .vae_problem import VAEProblemSettings, VAESetup, check_finite, summed

Tell = Callable[[int], None]

WINDOW = 10
"""Iterations of L-BFGS between two entries of the objective; over so many it must have settled."""

_MEMORY = 20


class GeneratorPrior(VAEPrior, Protocol):
    """What these methods need of a VAE prior besides."""

    vae: Any
    """The networks; `vae.mean_decoder` is the module whose weights `narnhofer` tunes, on a copy."""

    def mean(self, z: torch.Tensor) -> torch.Tensor:
        """G(z), (batch, parts, y, x)."""

    def for_shape(self, shape: tuple[int, int]) -> GeneratorPrior:
        """This prior for images (y, x)."""


class RangeSettings(VAEProblemSettings):
    """Settings of `range_search`."""

    mu: float = Field(1.0, ge=0, allow_inf_nan=False, description="weight of the latents' prior; 1 is Bayes' rule")
    starts: int = Field(
        2, ge=1, le=64, description="starting points: the encoding of the first image, zero, then random latents; the "
        "lowest objective wins"
    )  # fmt: skip
    iterations: int = Field(100, ge=1, le=100000, description="the most L-BFGS iterations from each starting point")
    tolerance: float = Field(
        1e-5, ge=0, lt=1, description="stop when the objective falls by less than this share of it in 10 iterations"
    )
    seed: int = Field(0, ge=0, description="seed of the random latents; the same on every device")

    def brief(self) -> RangeSettings:
        """These settings with as few iterations as still run all of the method's code: for a warm-up."""
        return self.model_copy(update={"iterations": 2, "starts": 1})


@dataclass
class Found:
    """Where a search ended.

    Attributes
    ----------
    z
        Latents (1, set, *latent).
    image
        G(z), (1, set, parts, y, x).
    history
        The lowest objective found so far, at the beginning and after every so many iterations; last that of `image`.
    iterations
        How many there were.
    stopped
        By what it ended.
    """

    z: torch.Tensor
    image: torch.Tensor
    history: list[float]
    iterations: int
    stopped: str


class Search:
    """The search for one slice: `||A G(z) - y||^2 / (2 gamma^2) + mu ||z||^2 / 2`.

    Attributes
    ----------
    problem
        The slice in the prior's scale. With several sets of maps there are as many latents.
    prior
        Whose mean decoder is searched.
    evaluations
        Evaluations of the decoder, counted.
    """

    def __init__(self, problem: VAEObjective, prior: GeneratorPrior, mu: float, method: str) -> None:
        self.problem, self.prior, self.mu, self.method = problem, prior, mu, method
        self.evaluations = 0

    def generate(self, z: torch.Tensor) -> torch.Tensor:
        """G(z) of z (1, set, *latent), differentiable in z (and in weights that ask for it).

        Raises
        ------
        ValueError
            If the prior's images are not of the size of the scan's.
        """
        self.evaluations += 1
        mean = self.prior.mean(z.flatten(0, 1))
        rows, columns = self.problem.model.maps.shape[-2:]
        expected = (self.problem.sets, self.prior.parts, rows, columns)
        if tuple(mean.shape) != expected:
            raise ValueError(f"prior {self.prior.name!r}: expected an image {expected}, got {tuple(mean.shape)}")
        return mean[None]

    def value(self, z: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """The objective, a number in double precision, for image = G(z).

        Raises
        ------
        ValueError
            If it is not finite.
        """
        value = (self.problem.data_term(image) + 0.5 * self.mu * z.double().square().sum()).sum()
        check_finite(self.method, "objective", value.detach())
        return value

    def latents(self, start: torch.Tensor, settings: RangeSettings, tell: Tell) -> Found:
        """Minimise over z from `start` by L-BFGS with Wolfe's conditions."""
        with torch.enable_grad():
            z = start.detach().clone().requires_grad_(True)
            solver = torch.optim.LBFGS(
                [z], max_iter=WINDOW, history_size=_MEMORY, line_search_fn="strong_wolfe", tolerance_grad=0,
                tolerance_change=0,
            )  # fmt: skip
            lowest, best = float("inf"), (start, start)

            def closure() -> torch.Tensor:
                nonlocal lowest, best
                solver.zero_grad()
                image = self.generate(z)
                value = self.value(z, image)
                value.backward()  # type: ignore[no-untyped-call]
                if float(value.detach()) < lowest:
                    lowest, best = float(value.detach()), (z.detach().clone(), image.detach())
                return value

            history = [float(closure().detach())]
            done, stopped = 0, "iterations"
            while done < settings.iterations:
                done += WINDOW
                solver.param_groups[0]["max_iter"] = WINDOW - max(0, done - settings.iterations)
                solver.step(closure)  # type: ignore[no-untyped-call]
                history.append(lowest)
                tell(min(done, settings.iterations))
                if history[-2] - history[-1] <= settings.tolerance * abs(history[-1]):
                    stopped = "tolerance"
                    break
        return Found(*best, history, min(done, settings.iterations), stopped)

    def misfit(self, image: torch.Tensor) -> float:
        """||A x - y||^2."""
        return 2 * self.problem.gamma**2 * float(self.problem.data_term(image))


Refine = Callable[[Search, Found, float, Tell], Found]


def range_search(
    scan: Scan, prior: GeneratorPrior, settings: RangeSettings, progress: Progress | None = None
) -> Reconstruction:
    """The image G(z) that fits the data best: min_z ||A G(z) - y||^2 / (2 gamma^2) + mu ||z||^2 / 2.

    (Bora et al., ICML 2017; Duff et al. 2023, eq. 13, which has the weights otherwise: its mu is mu gamma^2 / 2 here.)
    By L-BFGS from every starting point. What the generator cannot make is not in the image, however good the data are.
    A prior of one part has G(z) real: the smooth phase of
    the CG-SENSE image is taken out of A, and put back at the end.

    Parameters
    ----------
    scan
        A batch shares one intensity scale; its slices are searched for one after another. With several sets of maps
        each set's image is one image to the prior.

    Returns
    -------
    Reconstruction without std; zero where the maps are. `info` says method, prior, nfe (evaluations of the decoder for
    one slice, as counted), iterations, objective (at the beginning and after every 10 iterations, summed over the
    batch), residual (||A x - y|| over that of the noise, of the worst slice), winner (which start), stopped, mu, gamma,
    scale and seconds.

    Raises
    ------
    ValueError
        If the scan has no maps or no signal, its size is not the prior's, or the objective or the image is not finite.
    """
    return search_slices("range", scan, prior, settings, progress)


def search_slices(
    method: str,
    scan: Scan,
    prior: GeneratorPrior,
    settings: RangeSettings,
    progress: Progress | None,
    refine: Refine | None = None,
    refine_steps: int = 0,
) -> Reconstruction:
    """The search for every slice from every starting point, and what a method makes of the best end of each.

    Parameters
    ----------
    method
        Its name, for `info` and errors.
    refine
        Goes on from the best end: `refine(search, found, noise, tell)`, `noise` being what the noise alone is expected
        to leave of ||A x - y||^2.
    refine_steps
        The most steps it takes, for the progress.
    """
    began = time.perf_counter()
    setup = VAESetup.of(scan, prior, settings)
    rows, columns = setup.model.maps.shape[-2:]
    prior = prior.for_shape((rows, columns))
    generator = torch.Generator().manual_seed(settings.seed)
    steps = settings.starts * settings.iterations
    slices = pieces(scan, 1, 1)
    images, histories, winners, residuals, evaluations, done, stopped = [], [], [], [], 0, 0, set()
    for number, (part, piece) in enumerate(slices):

        def tell(step: int, number: int = number) -> None:
            if progress is not None:
                progress(number * (steps + refine_steps) + step, len(slices) * (steps + refine_steps))

        model = SenseModel.of(piece)
        problem = VAEObjective(
            prior, model, piece.kspace / setup.scale, setup.own_phase(part), setup.gamma, 1.0, settings.mu
        )
        search = Search(problem, prior, settings.mu, method)
        trials = _trials(search, setup.first[part] / setup.scale, settings, generator, tell)
        winner = min(range(len(trials)), key=lambda trial: trials[trial].history[-1])
        found = trials[winner]
        samples = int(sample_count(piece.kspace, model).sum())
        noise = 2 * setup.gamma**2 * samples
        if refine is not None:
            found = refine(search, found, noise, lambda step: tell(steps + step))
        image = setup.scale * combine_sets(problem.to_complex(found.image)[0], model)
        check_finite(method, "image", image)
        images.append(image)
        histories.append(found.history)
        winners.append(winner)
        residuals.append((search.misfit(found.image) / noise) ** 0.5)
        evaluations += search.evaluations
        done = max(done, found.iterations)
        stopped.add(found.stopped)
    return Reconstruction(
        torch.cat(images) if len(images) > 1 else images[0],
        info={
            "method": method,
            "prior": prior.name,
            "nfe": evaluations // len(slices),
            "iterations": done,
            "objective": summed(histories),
            "residual": max(residuals),
            "winner": winners,
            "stopped": " and ".join(sorted(stopped)),
            "mu": settings.mu,
            "gamma": setup.gamma,
            "scale": setup.scale,
            "seconds": time.perf_counter() - began,
        },
    )


def _trials(
    search: Search,
    first: torch.Tensor,
    settings: RangeSettings,
    generator: torch.Generator,
    tell: Tell,
) -> list[Found]:
    """The search from every starting point: the encoding of `first`, zero, and random latents."""
    mean = search.problem.encode(search.problem.to_real(first[None]))
    check_finite(search.method, "encoding", mean)
    starts = [mean, torch.zeros_like(mean)][: settings.starts]
    while len(starts) < settings.starts:
        starts.append(torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean.device))
    found = []
    for number, start in enumerate(starts):

        def told(step: int, before: int = number * settings.iterations) -> None:
            tell(before + step)

        found.append(search.latents(start, settings, told))
    return found
