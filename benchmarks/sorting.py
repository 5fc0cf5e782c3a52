"""How fast acquisitions are sorted and whitened, against how fast a scanner sends them.

One core, 4000 readouts a second of 16 channels x 512 samples. Measured: `Sorter.add` for every readout, and for every
slice that gets ready, whitening and preparation (readout oversampling removed, mask, calibration region). Time is that
of this process on its core, so that others on the machine do not count.

    python benchmarks/sorting.py [--readouts 16000] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
from scanprior.gadgets.encoding import Encoding
from scanprior.gadgets.mrd import ACQUISITION_HEADER, Acquisition
from scanprior.gadgets.preparation import prepare, whitening_for
from scanprior.gadgets.slices import SliceReady
from scanprior.gadgets.sorting import Sorter

RATE, CHANNELS, SAMPLES, LINES = 4000, 16, 512, 256
LAST_IN_SLICE, NOISE, CALIBRATION_AND_IMAGING = 1 << 7, 1 << 18, 1 << 20

HEADER = f"""<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<acquisitionSystemInformation><receiverChannels>{CHANNELS}</receiverChannels></acquisitionSystemInformation>
<encoding>
<encodedSpace><matrixSize><x>{SAMPLES}</x><y>{LINES}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>480</x><y>240</y><z>5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>{SAMPLES // 2}</x><y>{LINES}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>240</x><y>240</y><z>5</z></fieldOfView_mm></reconSpace>
<encodingLimits/><trajectory>cartesian</trajectory>
<parallelImaging><accelerationFactor><kspace_encoding_step_1>1</kspace_encoding_step_1>
<kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor>
<calibrationMode>embedded</calibrationMode></parallelImaging>
</encoding></ismrmrdHeader>"""


def readouts(count: int) -> list[Acquisition]:
    """A noise scan and `count` readouts in slices of LINES lines; the samples of few are shared by all."""
    generator = np.random.default_rng(0)
    shape = (64, CHANNELS, SAMPLES)
    samples = (generator.standard_normal(shape) + 1j * generator.standard_normal(shape)).astype(np.complex64)
    heads = np.zeros(count + 16, ACQUISITION_HEADER)
    heads["number_of_samples"], heads["center_sample"], heads["active_channels"] = SAMPLES, SAMPLES // 2, CHANNELS
    heads["sample_time_us"] = 5.0
    heads["flags"][:16] = NOISE
    line, repetition = np.arange(count) % LINES, np.arange(count) // LINES
    heads["idx"]["kspace_encode_step_1"][16:] = line
    heads["idx"]["repetition"][16:] = repetition
    heads["flags"][16:][np.abs(line - LINES // 2) < 12] = CALIBRATION_AND_IMAGING
    heads["flags"][16:][line == LINES - 1] |= LAST_IN_SLICE
    return [Acquisition(head, samples[index % len(samples)]) for index, head in enumerate(heads)]


def run(scan: list[Acquisition]) -> tuple[float, float, int]:
    """Seconds of sorting, seconds of preparation, number of slices."""
    encoding = Encoding.from_header(HEADER)
    sorter = Sorter(encoding)
    sorting = preparing = 0.0
    slices = 0
    for acquisition in scan:
        start = time.process_time()
        events = sorter.add(acquisition)
        sorting += time.process_time() - start
        for event in events:
            if isinstance(event, SliceReady):
                start = time.process_time()
                prepare(event.slice_data, encoding, whitening_for(event.slice_data, encoding, sorter.noise.noise()))
                preparing += time.process_time() - start
                slices += 1
    return sorting, preparing, slices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--readouts", type=int, default=16000, help="how many, 256 to a slice (default %(default)s)")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file, too")
    arguments = parser.parse_args()
    scan = readouts(arguments.readouts)
    run(scan[: 16 + 4 * LINES])  # warm up
    sorting, preparing, slices = run(scan)
    rate = arguments.readouts / (sorting + preparing)
    figures = {
        "readouts": arguments.readouts,
        "channels x samples": f"{CHANNELS} x {SAMPLES}",
        "sorting, us a readout": round(1e6 * sorting / arguments.readouts, 1),
        "preparation, ms a slice": round(1e3 * preparing / max(slices, 1), 1),
        "readouts a second": round(rate),
        "times real time": round(rate / RATE, 2),
        "machine": f"{platform.machine()}, python {platform.python_version()}, numpy {np.__version__}, 1 thread",
    }
    print(json.dumps(figures, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    if os.environ.get("OMP_NUM_THREADS") != "1":  # numpy's BLAS reads it as it is loaded: start again
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_NUM_THREADS": "1"})
    main()
