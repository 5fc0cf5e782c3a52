"""NCSNv2: its normalisation, its stages and its decoder."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import small_network
from scanprior.models.ncsnv2 import InstanceNormPlus, NCSNv2, Refine, ResidualBlock


def test_instance_norm_plus_keeps_the_means_of_the_channels() -> None:
    norm = InstanceNormPlus(4)
    with torch.no_grad():
        norm.beta.normal_()
    x = torch.randn(2, 4, 6, 7) * 3 + torch.arange(4.0)[:, None, None]
    mean = x.mean((2, 3))
    standard = (mean - mean.mean(1, keepdim=True)) / (mean.var(1, keepdim=True) + 1e-5).sqrt()
    wanted = F.instance_norm(x) + (norm.alpha * standard)[..., None, None]
    wanted = norm.gamma[:, None, None] * wanted + norm.beta[:, None, None]
    torch.testing.assert_close(norm(x), wanted)
    torch.testing.assert_close(norm(10 * x - 3), norm(x), atol=1e-4, rtol=1e-4)
    assert norm(torch.randn(1, 4, 1, 1)).isfinite().all()


def test_stages_halve_where_they_do_not_dilate() -> None:
    network = NCSNv2(2, (4, 8, 8, 12, 12), (1, 1, 1, 2, 4))
    seen: list[torch.Size] = []
    for stage in network.stages:
        stage.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1:]))
    network(torch.randn(1, 2, 16, 24), torch.zeros(1))
    assert seen == [(4, 16, 24), (8, 8, 12), (8, 4, 6), (12, 4, 6), (12, 4, 6)]
    # dilated convolutions are told apart by how far they reach
    block = ResidualBlock(3, 3, 4, enter=False)
    x = torch.zeros(1, 3, 21, 21, requires_grad=True)
    block.first(x)[0, 0, 10, 10].backward()
    assert sorted(set(x.grad[0, 0].nonzero()[:, 0].tolist())) == [6, 10, 14]


def test_refinement_without_weights_is_the_sum_of_its_inputs() -> None:
    refine = Refine((2, 3), 2, last=False)
    for parameter in refine.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        for fuse, channel in zip(refine.fuse, (0, 2), strict=True):
            fuse.weight[0, channel, 1, 1] = 1
    fine, coarse = torch.rand(1, 2, 8, 8), torch.rand(1, 3, 4, 4)
    large = F.interpolate(coarse, size=(8, 8), mode="bilinear", align_corners=True)
    torch.testing.assert_close(refine(fine, coarse)[:, 0], fine[:, 0] + large[:, 2])
    # a chain of two poolings of 5 x 5 reaches four pixels
    with torch.no_grad():
        for conv in refine.pool:
            conv.weight[0, 0, 1, 1] = 1
    spot = torch.zeros(1, 2, 17, 17)
    spot[..., 8, 8] = 1
    assert refine(spot, torch.zeros(1, 3, 9, 9))[0, 0, 8].tolist() == [0] * 4 + [1, 1, 2, 2, 3, 2, 2, 1, 1] + [0] * 4


@pytest.mark.parametrize("shape", [(16, 16), (17, 23), (5, 40), (3, 2)])
def test_any_size(shape: tuple[int, int]) -> None:
    network = small_network("ncsnv2")
    with torch.no_grad():
        assert network(torch.randn(2, 2, *shape), torch.zeros(2)).shape == (2, 2, *shape)


def test_every_weight_matters_and_the_noise_level_does_not() -> None:
    network = small_network("ncsnv2")
    x = torch.randn(2, 2, 16, 16)
    network(x, torch.zeros(2)).square().sum().backward()
    assert [name for name, weight in network.named_parameters() if not weight.grad.abs().max() > 0] == []
    with torch.no_grad():
        assert torch.equal(network(x, torch.zeros(2)), network(x, torch.ones(2)))


def test_wrong_stages_are_refused() -> None:
    with pytest.raises(ValueError, match=r"equally long and the first dilation 1, got widths \[8, 8\]"):
        NCSNv2(2, (8, 8), (1, 1, 2))
