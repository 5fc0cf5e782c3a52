"""One scan: acquisitions in, images out. The core behind every way in."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scanprior.models.espirit import fitting_kernel
from scanprior.models.methods import METHODS
from scanprior.models.recipe import Recipe
from scanprior.models.scan import Reconstruction, Scan, Settings

from .coil_maps import CoilMaps
from .compression import Compression
from .encoding import Encoding
from .engine import Engine
from .errors import ScanError
from .failures import Failures
from .images import make_images
from .link import Send, Tell
from .mrd import Acquisition, Bucket, Image, ReconData
from .noise import Noise, Whitening, estimate_noise
from .partial_fourier import complete, fills
from .preparation import Problem, calibration_kspace, prepare, prepare_acs, whitening_for
from .recon_data import acquisitions_from_bucket, slices_from_recon
from .slices import AcsReady, Event, Key, SliceData
from .sorting import Sorter

log = logging.getLogger(__name__)

MAX_PENDING_BYTES = 4 << 30  # k-space that waits for the worker; over it, the input waits


class Aborted(Exception):
    """The scan was given up while a reconstruction ran."""


@dataclass
class Timing:
    """When things happened, in seconds since the header came."""

    began: float = field(default_factory=time.perf_counter)
    slices: deque[dict[str, float | str]] = field(default_factory=deque)
    first_image: float | None = None

    def now(self) -> float:
        """Seconds since the header came."""
        return time.perf_counter() - self.began


class ScanSession:
    """Sorts what comes in, and has each slice reconstructed as soon as its last line has come.

    `feed` takes a message and returns quickly; reconstructions run on the engine's worker, in the order in which slices
    become complete. A slice that fails does not take the others with it: all failures are told by `close`.

    Attributes
    ----------
    encoding
        What the header says.
    timing
        Latency of each image, for reports.
    results
        `Reconstruction.info` and notes of each image made, with its key.

    Both hold the latest `records` images; None: all.
    """

    def __init__(
        self, engine: Engine, recipe: Recipe, header: str, send: Callable[[Image], None], records: int | None = None
    ) -> None:
        self.engine, self.recipe, self._send = engine, recipe, send
        self.encoding = Encoding.from_header(header)
        self.timing = Timing(slices=deque(maxlen=records))
        self.results: deque[dict[str, object]] = deque(maxlen=records)
        self._settings = recipe.settings_to_run
        self._device = engine.device(recipe)
        self._prior = engine.prior(recipe)
        self._sorter = Sorter(self.encoding)
        self._upstream = recipe.whitening == "upstream"
        self._estimated: Noise | None = None
        self._maps = CoilMaps(recipe.maps, self._device)  # worker's thread only
        self._index = 0  # worker's thread only
        self._failures = Failures()
        self._room = threading.Condition()
        self._jobs: dict[Future[None], int] = {}  # those that are not done, and their bytes
        self._submitted = 0
        self._stopped = False
        log.info(
            "scan begins: recipe %s, method %s, matrix %s, %s", recipe.name, recipe.method,
            "x".join(map(str, self.encoding.encoded.matrix)), self._device,
        )  # fmt: skip

    accepts = (Acquisition, Bucket, ReconData)

    # -- the input's thread -------------------------------------------------------------------------------------

    def feed(self, message: Acquisition | Bucket | ReconData) -> None:
        """Take an acquisition, or what Gadgetron's gadgets made of acquisitions.

        One that contradicts the header is left out, which `close` and the history of its image will tell: what came
        before is kept, and the next can be fed. Of recon data a slice that cannot be used is left out whole, and
        `close` tells it; the other slices of the message are made.
        """
        if isinstance(message, Acquisition):
            self._add(message)
        elif isinstance(message, Bucket):
            # its waveforms are the upstream's copies; the stream itself carries them on
            for acquisition in acquisitions_from_bucket(message.data, message.reference):
                self._add(acquisition)
        else:
            for bit in message.bits:
                try:
                    for data in slices_from_recon(bit.data, bit.reference, self.encoding, self._fail):
                        self._slice_ready(data)
                except ScanError as error:
                    self._failures.note(str(error))

    def _add(self, acquisition: Acquisition) -> None:
        try:
            events = self._sorter.add(acquisition)
        except ScanError as error:
            self._failures.note(str(error))
            events = self._sorter.ended_by(acquisition)
        self._handle(events)

    def close(self) -> None:
        """The input has ended: reconstruct what is left, and wait until every image is sent, or `abort` is called.

        Raises
        ------
        ScanError
            One text for all that went wrong. All images that could be made have been sent.
        """
        self._handle(self._sorter.flush())
        with self._room:
            self._room.wait_for(lambda: not self._jobs or self._stopped)
        if self._stopped:
            return
        told = self._failures.told()
        log.info("scan ends: %d images, %d failures, %.1f s", self._index, len(self._failures), self.timing.now())
        if told:
            refused = self._sorter.left_out["refused"]
            told += [f"{refused} readouts were left out, as the history of their images says"] if refused else []
            raise ScanError("; ".join(told))
        if not self._submitted:
            log.warning("the scan ended without imaging readouts: a noise scan alone, or nothing at all")

    def abort(self, reason: str) -> None:
        """Give the scan up: nothing more is reconstructed. Returns when the worker has let go of it."""
        log.warning("scan is given up: %s", reason)
        with self._room:
            self._stopped = True
            jobs = list(self._jobs)
            self._room.notify_all()
        for job in jobs:
            job.cancel()
        with self._room:
            self._room.wait_for(lambda: not self._jobs)

    def _handle(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, AcsReady):
                self._acs_ready(event.slice_data)
            else:
                self._slice_ready(event.slice_data)

    def _acs_ready(self, data: SliceData) -> None:
        if not self.recipe.needs_maps:
            return
        try:
            whitening = self._whitening(data, complete=False)
        except ScanError as error:  # the slice will meet it again, and tell
            log.info("maps of %s wait for the whole slice: %s", data.key, error)
            return
        if whitening is not None:
            log.info("ACS of %s is complete after %.3f s: maps begin", data.key, self.timing.now())
            self._submit(data, lambda: self._estimate_maps(data, whitening))

    def _slice_ready(self, data: SliceData) -> None:
        try:
            whitening = self._whitening(data, complete=True)
        except ScanError as error:
            self._failures.note(str(error))
            return
        assert whitening is not None
        ready = self.timing.now()
        self._submit(data, lambda: self._reconstruct(data, whitening, ready))

    def _whitening(self, data: SliceData, complete: bool) -> Whitening | None:
        """Whitening of a slice; None where it is to be estimated and no slice is complete yet."""
        coils = len(data.kspace)
        if self._upstream:
            return Whitening.upstream(coils)
        noise = None if self.recipe.whitening == "none" else self._sorter.noise.noise()
        if noise is not None:
            return whitening_for(data, self.encoding, noise)
        if not METHODS[self.recipe.method].needs_noise:
            return Whitening.identity(coils, None)
        # one estimate, from the first complete slice, for the whole scan: all images keep one scale
        if self._estimated is None:
            if not complete:
                return None
            self._estimated = estimate_noise(data)
        if self.recipe.whitening == "auto":
            return whitening_for(data, self.encoding, self._estimated)
        return Whitening.identity(coils, self._estimated)

    def _submit(self, data: SliceData, job: Callable[[], None]) -> None:
        size = data.kspace.nbytes + (data.acs.kspace.nbytes if data.acs is not None else 0)

        def run() -> None:
            try:
                self._go_on()
                job()
            except Aborted:
                log.info("%s is given up", data.key)
            except Exception as error:  # noqa: BLE001  whatever it was, it is told, and the next slice is tried
                self._fail(data.key, error)

        with self._room:
            if not self._fits(size):
                log.warning("input waits: %d MB of k-space are queued for reconstruction", self._pending >> 20)
                self._room.wait_for(lambda: self._fits(size) or self._stopped)
            if self._stopped:
                return
            future = self.engine.worker.submit(run)
            self._jobs[future] = size
            self._submitted += 1
        future.add_done_callback(self._done)

    @property
    def _pending(self) -> int:
        return sum(self._jobs.values())

    def _fits(self, size: int) -> bool:
        return not self._jobs or self._pending + size <= MAX_PENDING_BYTES

    def _done(self, job: Future[None]) -> None:
        if job.cancelled() and not self._stopped:
            self._failures.note("the reconstruction was shut down before all images were made")
        with self._room:
            del self._jobs[job]
            self._room.notify_all()

    # -- either thread ------------------------------------------------------------------------------------------

    def _fail(self, key: Key, error: Exception) -> None:
        if not isinstance(error, ValueError):
            log.exception("%s failed", key)
        text = str(error) or type(error).__name__
        self._failures.note(text, None if str(key) in text else key)

    # -- the worker's thread ------------------------------------------------------------------------------------

    def _compression(self, data: SliceData, whitening: Whitening) -> Compression | None:
        wanted = self.recipe.compression
        if wanted is None:
            return None
        calibration = whitening(calibration_kspace(data, self.encoding))
        amount = wanted.coils if wanted.coils is not None else wanted.energy
        assert amount is not None
        return Compression.from_calibration(calibration, amount)

    def _estimate_maps(self, data: SliceData, whitening: Whitening) -> None:
        """Maps ahead of the slice. A failure is not told here: the slice will meet it again, with all its lines."""
        acs = prepare_acs(data, self.encoding, whitening, self._compression(data, whitening))
        shape = self._image_shape(data)
        if acs is not None:
            try:
                self._maps.of(data.acs_key or data.key, acs, shape, _acs_noise(data, whitening))
            except ValueError as error:
                log.info("maps of %s wait for the whole slice: %s", data.key, error)

    def _image_shape(self, data: SliceData) -> tuple[int, int]:
        matrix = self.encoding.encoded.matrix
        width = min(data.kspace.shape[-1], self.encoding.readout_cropped)
        return (matrix[2], matrix[1]) if self.encoding.volume else (matrix[1], width)

    def _reconstruct(self, data: SliceData, whitening: Whitening, ready: float) -> None:
        began = self.timing.now()
        problem = prepare(data, self.encoding, whitening, self._compression(data, whitening))
        maps = None
        if self.recipe.needs_maps:
            # without calibration lines ESPIRiT itself says what can be done
            acs = problem.kspace[..., :0, :] if problem.acs is None else problem.acs
            maps = self._maps.of(
                problem.acs_key or problem.key, acs, self._image_shape(data), _acs_noise(data, whitening)
            )
            self._maps.forget_before(problem.acs_key or problem.key)
            wanted = self.recipe.maps.kernel
            if (kernel := fitting_kernel(min(acs.shape[-2:]), wanted)) < wanted:
                problem.notes["espirit_kernel"] = f"{kernel}, not {wanted}: few ACS lines"
        self._go_on()
        result = self._run_method(problem, maps)
        if "warning" in result.info:
            log.warning("image of %s by %s: %s", data.key, self.recipe.method, result.info["warning"])
        image = complete(result.image.cpu().numpy(), problem, self.recipe.partial_fourier)
        if fills(problem, self.recipe.partial_fourier):
            problem.notes["partial_fourier_filling"] = self.recipe.partial_fourier
        std = result.std.cpu().numpy() if result.std is not None and self.recipe.outputs.std else None
        self._index += 1
        images = make_images(
            image, std, problem=problem, source=data, encoding=self.encoding, info=result.info,
            index=self._index, complex_image=self.recipe.outputs.image == "complex",
        )  # fmt: skip
        for message in images:
            self._go_on()
            self._send(message)
        sent = self.timing.now()
        if self.timing.first_image is None:
            self.timing.first_image = sent
        self.timing.slices.append(
            {"key": str(data.key), "complete": ready, "waited": began - ready, "seconds": sent - began, "sent": sent}
        )
        self.results.append({"key": data.key._asdict(), **problem.notes, **result.info})
        log.info("image of %s is sent %.2f s after its last line", data.key, sent - ready)

    def _run_method(self, problem: Problem, maps: torch.Tensor | None) -> Reconstruction:
        method = METHODS[self.recipe.method]
        scan = Scan(
            torch.from_numpy(problem.kspace).to(self._device),
            torch.from_numpy(problem.mask).to(self._device),
            maps,
            problem.sigma,
        )
        return method.run(scan, self._prior, self._seeded(problem.key), self._progress)

    def _seeded(self, key: Key) -> Settings:
        """Settings with a seed of this image's own: the same whatever order images are made in."""
        if "seed" not in type(self._settings).model_fields:
            return self._settings
        seed = np.random.SeedSequence([getattr(self._settings, "seed", 0), *key]).generate_state(1)[0]
        return self._settings.model_copy(update={"seed": int(seed)})

    def _progress(self, step: int, steps: int) -> None:
        self._go_on()

    def _go_on(self) -> None:
        if self._stopped:
            raise Aborted


def _acs_noise(data: SliceData, whitening: Whitening) -> float:
    """Noise of the calibration lines; 0, not known, of separate ones: they may come in a scale of their own."""
    return whitening.sigma if data.acs is None else 0.0


_engine: Engine | None = None
_engine_lock = threading.Lock()


def open_session(header_xml: str, parameters: dict[str, Any], send: Send, tell: Tell) -> ScanSession:
    """Begin the one scan of a process that Gadgetron has started for it (`<execute>`)."""
    global _engine
    with _engine_lock:
        if _engine is None:
            _engine = Engine()
    return _engine.open_session(header_xml, parameters, send, tell)
