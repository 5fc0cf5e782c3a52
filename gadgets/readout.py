"""Where the samples of one readout belong in the matrix."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scanprior.gadgets.encoding import Encoding
from scanprior.gadgets.errors import ScanError


class Readout(NamedTuple):
    """Samples `first` to `stop` of an acquisition are data; the centre of k-space is data sample `center`."""

    first: int
    stop: int
    center: int
    reverse: bool

    @property
    def length(self) -> int:
        """Number of data samples."""
        return self.stop - self.first

    def samples(self, data: np.ndarray) -> np.ndarray:
        """Data samples (coil, sample) in the order of rising k-space position."""
        samples = data[:, self.first : self.stop]
        return samples[:, ::-1] if self.reverse else samples

    def place(self, width: int) -> tuple[int, int]:
        """First and last + 1 matrix column, of `width`, that this readout fills; DC at width // 2.

        A full-length readout fills the matrix as it is: headers give its centre as N / 2, as N / 2 - 1 or not at all.

        Raises
        ------
        ScanError
            The readout does not fit.
        """
        if self.length == width and (self.center <= 0 or abs(self.center - width // 2) <= 1):
            return 0, width
        start = width // 2 - self.center
        if start < 0 or start + self.length > width:
            raise ScanError(
                f"a readout of {self.length} samples with its centre at sample {self.center} "
                f"does not fit into a matrix of {width} samples"
            )
        return start, start + self.length


def read(head: np.void, reverse: bool) -> Readout:
    """Take the layout of a readout from its acquisition header.

    A reversed readout is flipped; its centre sample c of N becomes N - c, which leaves a symmetric one in place.
    (Where the echo of a reversed gradient really lies is the sequence's affair; one sample is one cycle of phase.)

    Raises
    ------
    ScanError
        discard_pre and discard_post leave nothing.
    """
    samples, pre, post = int(head["number_of_samples"]), int(head["discard_pre"]), int(head["discard_post"])
    if pre + post >= samples:
        raise ScanError(f"an acquisition of {samples} samples discards {pre} before and {post} after: none are left")
    center = int(head["center_sample"]) - pre
    if reverse:
        center = (samples - pre - post) - center
    return Readout(pre, samples - post, center, reverse)


def matrix_width(readout: Readout, encoding: Encoding) -> int:
    """Length of the readout matrix: the encoded one, or the cropped one where oversampling was removed upstream.

    Gadgetron's RemoveROOversampling leaves the header as it is, so it shows only in the readouts: they have
    exactly the length without oversampling, with the centre in the middle.
    """
    cropped, encoded = encoding.readout_cropped, encoding.encoded.matrix[0]
    removed = readout.length == cropped and readout.center in (0, cropped // 2)
    return cropped if removed else encoded
