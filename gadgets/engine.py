"""What outlives a scan: recipes, loaded priors, the device, and the one worker that reconstructs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from scanprior.models.methods import METHODS
from scanprior.models.prior import AnyPrior, PriorError, load_any_prior
from scanprior.models.recipe import DEFAULT_RECIPE, PARAMETERS, Recipe, RecipeError, load_recipe, recipe_names
from scanprior.models.scan import Scan

from .errors import ScanError
from .link import Tell
from .mrd import Image

if TYPE_CHECKING:
    from .session import ScanSession

log = logging.getLogger(__name__)

DEFAULT_THREADS = torch.get_num_threads()
"""Read once at import: what torch chooses on this machine, or OMP_NUM_THREADS says."""


class Engine:
    """Shared by all scans of a process; every scan's reconstructions run one after another on its one worker.

    One worker, because two reconstructions at once on one device are slower than one after the other, and because the
    number of threads that torch uses would otherwise change the last bits of an image.

    Parameters
    ----------
    recipe
        What scans get that ask for nothing: a recipe, or the name of a shipped one.
    device
        Overrides the recipes' device: "auto", "cpu", "cuda" or "cuda:1". A scan's own parameter goes before it.
    threads
        CPU threads of torch on the worker; 0 takes torch's own choice.

    Raises
    ------
    RecipeError
        When the recipe is not known, or `device` is none of these.
    """

    def __init__(self, recipe: Recipe | str = DEFAULT_RECIPE, *, device: str | None = None, threads: int = 0) -> None:
        self._device = device
        self.default = self._placed(load_recipe(recipe) if isinstance(recipe, str) else recipe)
        self._priors: dict[tuple[str, str, str, bool], AnyPrior] = {}
        self._lock = threading.Lock()
        # always set: another engine of this process may have chosen another number before
        self.worker = ThreadPoolExecutor(
            1, "reconstruct", initializer=torch.set_num_threads, initargs=(threads or DEFAULT_THREADS,)
        )

    def _placed(self, recipe: Recipe) -> Recipe:
        return recipe if self._device is None else recipe.on(self._device)

    def recipe(self, parameters: Mapping[str, Any], tell: Tell | None = None) -> Recipe:
        """The recipe that a scan's parameters ask for.

        The parameter `recipe` must name a shipped recipe. `config`, the name of a configuration that many clients send
        whether they mean one of ours or not, is followed if it does; else the operator is told that it was not.

        Raises
        ------
        RecipeError
            When it is not known, or a parameter has a value that is not allowed.
        """
        name, config = parameters.get("recipe"), str(parameters.get("config") or "")
        recipe = self.default
        if name:
            recipe = self._placed(load_recipe(str(name)))
        elif config in recipe_names():
            recipe = self._placed(load_recipe(config))
        elif config and tell is not None:
            tell("warning", f"configuration {config[:64]!r} is no recipe of ours: recipe {recipe.name!r} is used")
        others = [repr(key[:64]) for key in parameters if key not in ("recipe", "config", *PARAMETERS)]
        if others:
            log.warning("parameters that are not ours are left alone: %s", ", ".join(others[:20]))
        return recipe.with_parameters(parameters)

    def device(self, recipe: Recipe) -> torch.device:
        """Where a recipe runs.

        Raises
        ------
        RuntimeError
            When it asks for a GPU that is not there: never silently on the CPU.
        """
        if recipe.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if recipe.device.startswith("cuda") and not torch.cuda.is_available():
            raise RuntimeError(f"the recipe asks for device {recipe.device!r}, and no CUDA device is to be had here")
        device = torch.device(recipe.device)
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise RuntimeError(
                f"the recipe asks for device {recipe.device!r}, and there are only {torch.cuda.device_count()} here, "
                "counted from cuda:0"
            )
        return device

    def prior(self, recipe: Recipe) -> AnyPrior | None:
        """The prior of a recipe on its device, loaded once; None where the method takes none.

        Raises
        ------
        PriorError
            When there is none of that name, or it is of a family that is not the method's.
        """
        if recipe.prior is None:
            return None
        device = self.device(recipe)
        with self._lock:
            key = recipe.prior, str(device), recipe.precision, recipe.compile
            if key not in self._priors:
                autocast = None if recipe.precision == "float32" else getattr(torch, recipe.precision)
                prior: AnyPrior = load_any_prior(recipe.prior, device, autocast, recipe.compile)
                self._priors[key] = prior
                log.info("prior %s is loaded on %s", recipe.prior, device)
            wanted = METHODS[recipe.method].prior
            if self._priors[key].family != wanted:
                raise PriorError(
                    f"prior {recipe.prior!r} is of the family {self._priors[key].family!r}; "
                    f"the method {recipe.method!r} of recipe {recipe.name!r} wants {wanted!r}"
                )
            return self._priors[key]

    def warm_up(self, recipe: Recipe | None = None) -> float:
        """Load the prior and reconstruct a small scan in few steps, so that no real one waits for it; in seconds."""
        recipe = recipe or self.default
        began = time.perf_counter()

        def run() -> None:
            device, prior = self.device(recipe), self.prior(recipe)
            edge = (prior.size if prior is not None else None) or 64
            generator = torch.Generator().manual_seed(0)
            maps = torch.full((4, edge, edge), 0.5, dtype=torch.complex64, device=device)
            kspace = torch.view_as_complex(torch.randn(4, edge, edge, 2, generator=generator)).to(device)
            mask = torch.ones(edge, 1, dtype=torch.bool, device=device)
            scan = Scan(kspace, mask, maps, 2**0.5)
            METHODS[recipe.method].run(scan, prior, recipe.settings_to_run.brief())

        self.worker.submit(run).result()
        return time.perf_counter() - began

    def open_session(
        self,
        header: str,
        parameters: Mapping[str, Any],
        send: Callable[[Image], None],
        tell: Tell | None = None,
        *,
        records: int | None = 1000,
    ) -> ScanSession:
        """Begin a scan.

        Parameters
        ----------
        header
            MRD header, XML.
        parameters
            What the scan asks for: Gadgetron properties or FIRE's JSON parameters.
        send
            Called with each image as it is made, from the worker's thread.
        tell
            Shows a text to the operator, where there is one.
        records
            Of how many images, the latest ones, the session remembers times and results. None: of all, which a
            server that runs for days must not ask for.

        Raises
        ------
        ScanError
            What cannot be done is refused before the first acquisition.
        """
        from .session import ScanSession

        try:
            return ScanSession(self, self.recipe(parameters, tell), header, send, records)
        except (RecipeError, PriorError, RuntimeError) as error:
            raise ScanError(str(error)) from error

    def close(self) -> None:
        """Let the worker finish what it is at, and end it."""
        self.worker.shutdown(wait=True, cancel_futures=True)
