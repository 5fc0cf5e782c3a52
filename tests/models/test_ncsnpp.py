"""NCSN++: resampling, features, attention and blocks against what they are by definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from networks import small_network
from scanprior.models.fir import double, halve, smooth
from scanprior.models.ncsnpp import Attention, BigGANBlock, FourierFeatures, NCSNpp, PyramidDown, group_norm
from scipy.signal import upfirdn

TAPS = np.array([1.0, 3.0, 3.0, 1.0]) / 8


def image(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_resampling_is_scipys() -> None:
    x = image(2, 3, 12, 8)
    down, up = x.numpy(), x.numpy()
    for axis, size in ((-2, 12), (-1, 8)):
        down = np.take(upfirdn(TAPS, down, down=2, axis=axis), range(1, 1 + size // 2), axis)
        up = np.take(upfirdn(2 * TAPS, up, up=2, axis=axis), range(1, 1 + 2 * size), axis)
    np.testing.assert_allclose(halve(x).numpy(), down, atol=1e-12)
    np.testing.assert_allclose(double(x).numpy(), up, atol=1e-12)
    full = upfirdn(TAPS, upfirdn(TAPS, x.numpy(), axis=-2), axis=-1)
    np.testing.assert_allclose(smooth(x).numpy(), full[..., 1:-1, 1:-1], atol=1e-12)


def test_resampling_does_not_alias_and_keeps_means() -> None:
    checks = (-1.0) ** torch.arange(16, dtype=torch.float64)
    assert halve((checks[:, None] * checks)[None, None])[..., 1:-1, 1:-1].abs().max() < 1e-12
    flat = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(halve(flat)[..., 1:-1, 1:-1], flat[..., :2, :2])
    torch.testing.assert_close(double(flat)[..., 1:-1, 1:-1], torch.ones(1, 1, 14, 14, dtype=torch.float64))
    x, y = image(1, 2, 8, 10), image(1, 2, 4, 5, seed=1)
    assert float((double(y) * x).sum()) == pytest.approx(4 * float((halve(x) * y).sum()))


def test_pyramid_may_filter_before_or_after_its_convolution() -> None:
    """Both orders are in public code; they are one linear map."""
    torch.manual_seed(0)
    down = PyramidDown(3, 4).double()
    x = image(2, 3, 12, 10)
    convolved = torch.nn.functional.conv2d(x, down.conv.weight, padding=2)
    filtered = smooth(convolved)[..., 2:-2:2, 2:-2:2]
    assert down.conv.bias is not None
    torch.testing.assert_close(down(x), filtered + down.conv.bias[:, None, None])
    assert down(x).shape == (2, 4, 6, 5)


def test_fourier_features() -> None:
    features = FourierFeatures(5, scale=16.0, factor=4.0)
    sigma = torch.tensor([0.02, 3.0])
    angles = 2 * math.pi * sigma.log()[:, None] * features.frequencies
    found = features(sigma.log() / 4)
    torch.testing.assert_close(found, torch.cat([angles.sin(), angles.cos()], 1), atol=1e-4, rtol=0)
    drawn = FourierFeatures(4000, scale=16.0, factor=1.0).frequencies
    assert float(drawn.std()) == pytest.approx(16, rel=0.05)
    assert "frequencies" in features.state_dict(), "they are random, so the file has to keep them"


def test_attention_is_softmax_of_scaled_products() -> None:
    torch.manual_seed(0)
    attention = Attention(8).double()
    torch.nn.init.normal_(attention.leave.weight)
    x = image(2, 8, 3, 5)
    h = attention.norm(x)
    query, key, value = (
        torch.einsum("oi,biyx->boyx", part.weight[:, :, 0, 0], h).reshape(2, 8, 15)
        for part in (attention.query, attention.key, attention.value)
    )
    weights = torch.softmax(torch.einsum("bcq,bck->bqk", query, key) / math.sqrt(8), dim=-1)
    mixed = torch.einsum("bqk,bck->bcq", weights, value).reshape(2, 8, 3, 5)
    wanted = (x + torch.einsum("oi,biyx->boyx", attention.leave.weight[:, :, 0, 0], mixed)) / math.sqrt(2)
    torch.testing.assert_close(attention(x), wanted)
    # attention alone carries what happens at one end of the image to the other
    moved = x.clone()
    moved[..., 0, 0] += 1
    assert (attention(moved) - attention(x))[..., 2, 4].abs().max() > 1e-6


def test_blocks_begin_as_scaled_skips() -> None:
    x, embedding = torch.randn(1, 8, 6, 6), torch.randn(1, 16)
    torch.testing.assert_close(BigGANBlock(8, 8, 16)(x, embedding), x / math.sqrt(2))
    down = BigGANBlock(8, 12, 16, "down")
    torch.testing.assert_close(down(x, embedding), down.skip(halve(x)) / math.sqrt(2))
    assert BigGANBlock(8, 12, 16, "up")(x, embedding).shape == (1, 12, 12, 12)
    for channels, groups in ((8, 2), (128, 32), (256, 32), (144, 24)):
        assert group_norm(channels).num_groups == groups


@pytest.mark.parametrize("shape", [(16, 16), (17, 23), (5, 40), (3, 2)])
def test_any_size(shape: tuple[int, int]) -> None:
    network = small_network("ncsnpp")
    with torch.no_grad():
        assert network(torch.randn(2, 2, *shape), torch.zeros(2)).shape == (2, 2, *shape)


@pytest.mark.parametrize("middle", [True, False])
def test_every_weight_and_the_noise_level_matter(middle: bool) -> None:
    network = small_network("ncsnpp", attention=[0, 2], middle_attention=middle)
    x = torch.randn(2, 2, 16, 16)
    network(x, torch.tensor([0.1, 0.2])).square().sum().backward()
    assert [name for name, weight in network.named_parameters() if not weight.grad.abs().max() > 0] == []
    with torch.no_grad():
        assert (network(x, torch.zeros(2)) - network(x, torch.ones(2))).abs().max() > 1e-3


def test_centred_networks_see_twice_the_image_less_one() -> None:
    plain, centred = small_network("ncsnpp"), small_network("ncsnpp", centre=True)
    x, noise = torch.rand(1, 2, 16, 16), torch.zeros(1)
    with torch.no_grad():
        torch.testing.assert_close(centred(x, noise), plain(2 * x - 1, noise))


def test_a_new_network_says_nothing_and_wrong_levels_are_refused() -> None:
    assert NCSNpp(2, (8, 8), 1)(torch.randn(1, 2, 8, 8), torch.zeros(1)).abs().max() == 0
    with pytest.raises(ValueError, match=r"attention: expected levels from 0 to 1, got \[2\]"):
        NCSNpp(2, (8, 8), 1, attention=(2,))
