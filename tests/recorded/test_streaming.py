"""Images leave while the scan goes on: a client that waits for each of them before it sends the next line gets all."""

from __future__ import annotations

import queue
import re
import socket
import threading
from collections.abc import Iterator

import ismrmrd
import numpy as np
import pytest
from gadgetron.external import writers
from peers import (
    CLOSE,
    PeerScan,
    Replies,
    ServerProcess,
    Wire,
    open_fire,
    open_gadgetron,
    read_replies,
    read_scan,
    scan_file,
    serving,
)

PATIENCE_S = 30.0
NOISE, LAST_IN_SLICE = 19, 8

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving("--recipe", "sense", "--device", "cpu") as running:
        yield running


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> PeerScan:
    return read_scan(scan_file("brain_t2_multislice_r3", tmp_path_factory.mktemp("scan")))


class Patient:
    """A client that holds back its next line until the image of the slice that it completed has come."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.images: queue.Queue[str] = queue.Queue()
        self.replies: Replies | None = None
        self.thread = threading.Thread(target=self._listen)
        self.thread.start()

    def _listen(self) -> None:
        self.replies = read_replies(self.wire, self.images.put)

    def send(self, acquisition: ismrmrd.Acquisition) -> None:
        writers.write_acquisition(self.wire, acquisition)

    def await_image(self) -> None:
        assert self.images.get(timeout=PATIENCE_S) == "image"

    def finish(self) -> Replies:
        self.wire.id(CLOSE)
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        self.wire.close()
        assert self.replies is not None
        assert self.replies.closed
        return self.replies


@pytest.mark.parametrize("dialect", ["Gadgetron", "FIRE"])
def test_a_client_that_waits_for_each_image_gets_all_twelve(
    server: ServerProcess, scan: PeerScan, dialect: str
) -> None:
    wire = Wire(socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S))
    patient = Patient(wire)
    if dialect == "Gadgetron":
        open_gadgetron(wire, scan.header, recipe="sense", steps=3)
    else:
        open_fire(wire, scan.header, "sense", steps=3)
    completed = []
    for acquisition in scan.acquisitions:
        patient.send(acquisition)
        if acquisition.is_flag_set(LAST_IN_SLICE):
            patient.await_image()
            completed.append((acquisition.idx.slice, acquisition.idx.repetition))
    replies = patient.finish()
    assert not replies.errors + replies.texts
    assert len(completed) == 12
    assert [(image.slice, image.repetition) for image in replies.images] == completed, "in the order of completion"
    check_headers(replies.images, scan)


def check_headers(images: list[ismrmrd.Image], scan: PeerScan) -> None:
    """Geometry, time and counters of each image are those of the line of its slice nearest to the centre."""
    centre = 90
    lines = [line for line in scan.acquisitions if not line.is_flag_set(NOISE)]
    assert len({image.image_index for image in images}) == 12
    for image in images:
        own = [line for line in lines if (line.idx.slice, line.idx.repetition) == (image.slice, image.repetition)]
        assert len(own) == 76
        (nearest,) = [line for line in own if line.idx.kspace_encode_step_1 == centre]
        head = image.getHead()
        for name in ("position", "read_dir", "phase_dir", "slice_dir", "patient_table_position"):
            np.testing.assert_array_equal(getattr(head, name)[:], getattr(nearest.getHead(), name)[:])
        assert head.acquisition_time_stamp == nearest.acquisition_time_stamp
        assert (head.contrast, head.phase, head.set, head.average) == (0, 0, 0, 0)
        assert (head.image_series_index, head.image_type, head.data_type, head.channels) == (1, 1, 5, 1)
        assert head.matrix_size[:] == [180, 180, 1]
        assert image.data.std() > 0
    positions = {image.slice: np.array(image.getHead().position[:]) for image in images}
    direction = np.array(images[0].getHead().slice_dir[:])
    for number in range(5):  # anatomical order, 4 mm apart
        np.testing.assert_allclose(positions[number + 1] - positions[number], 4 * direction, atol=1e-3)


def test_maps_begin_before_the_last_line(server: ServerProcess, scan: PeerScan) -> None:
    """All of the first slice but its last line is sent: its maps are made, and no image can be."""
    before = len(server.lines)
    wire = Wire(socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S))
    patient = Patient(wire)
    open_gadgetron(wire, scan.header, recipe="sense", steps=3)
    first_end = next(n for n, line in enumerate(scan.acquisitions) if line.is_flag_set(LAST_IN_SLICE))
    for acquisition in scan.acquisitions[:first_end]:
        patient.send(acquisition)
    wanted = re.compile(r"maps of slice 0, repetition 0 from .* calibration samples")
    for _ in range(int(PATIENCE_S * 20)):
        if any(wanted.search(line) for line in server.lines[before:]):
            break
        threading.Event().wait(0.05)
    else:
        raise AssertionError("no maps while the slice was being acquired")
    assert patient.images.empty()
    patient.send(scan.acquisitions[first_end])
    patient.await_image()  # the input is still open
    assert len(patient.finish().images) >= 1


def test_each_slices_maps_are_made_once(server: ServerProcess, scan: PeerScan) -> None:
    """Those that were made ahead are those that the slice uses."""
    before = len(server.lines)
    wire = Wire(socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S))
    patient = Patient(wire)
    open_gadgetron(wire, scan.header, recipe="sense", steps=1)
    for acquisition in scan.acquisitions:
        if acquisition.idx.repetition == 0:
            patient.send(acquisition)
    assert len(patient.finish().images) == 6
    made = [line for line in server.lines[before:] if "calibration samples" in line]
    assert len(made) == 6, made
