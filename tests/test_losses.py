"""Regularizers of renderings and grids."""

import math

import pytest
import torch
from torch import Tensor

from corrdream.losses import (
    opaque_loss,
    orientation_loss,
    regularization_losses,
    sparsity_loss,
    total_variation,
    z_variance_loss,
)
from corrdream.structures import RaySamples, RenderOutput


def render(
    opacity: Tensor,
    *,
    weights: Tensor | None = None,
    normal: Tensor | None = None,
    direction: Tensor | None = None,
) -> RenderOutput:
    weights = torch.zeros(0, dtype=opacity.dtype) if weights is None else weights
    nothing = torch.zeros_like(weights)
    return RenderOutput(
        rgb=opacity[..., None].expand(*opacity.shape, 3),
        opacity=opacity,
        distance=opacity,
        samples=RaySamples(ray_indices=nothing.long(), t_starts=nothing, t_ends=nothing),
        weights=weights,
        sample_normal=normal,
        sample_direction=torch.zeros(len(weights), 3, dtype=opacity.dtype) if direction is None else direction,
    )


class Grids:
    """A field with one grid."""

    def __init__(self, *grids: Tensor) -> None:
        self.grids = grids

    def smooth_grids(self) -> list[Tensor]:
        return list(self.grids)


def image(*values: float) -> Tensor:
    return torch.tensor(values).view(1, 1, -1)


def test_orientation_counts_normals_that_face_away_a_hit_ray() -> None:
    along = torch.tensor([[1.0, 0.0, 0.0]] * 3)
    normal = torch.tensor([[-1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [1.0, 0.0, 0.0]])
    output = render(image(0.5, 0.0, 0.7), weights=torch.tensor([0.5, 0.25, 0.5]), normal=normal, direction=along)
    assert orientation_loss(output).item() == pytest.approx((0.25 * 0.36 + 0.5) / 2)


def test_orientation_of_a_scene_without_samples_is_zero() -> None:
    empty = torch.zeros(0, 3)
    assert orientation_loss(render(image(0.0, 0.0), normal=empty, direction=empty)).item() == 0


def test_orientation_turns_normals_and_moves_no_density() -> None:
    weights = torch.tensor([0.5], requires_grad=True)
    normal = torch.tensor([[0.6, 0.8, 0.0]], requires_grad=True)
    along = torch.tensor([[1.0, 0.0, 0.0]])
    orientation_loss(render(image(0.5), weights=weights, normal=normal, direction=along)).backward()
    assert weights.grad is None
    torch.testing.assert_close(normal.grad, torch.tensor([[2 * 0.5 * 0.6, 0.0, 0.0]]))


def test_orientation_without_normals_names_the_setting() -> None:
    with pytest.raises(ValueError, match=r"loss_weights.orientation needs normals; field.normal must not be none"):
        orientation_loss(render(image(0.5)))


def test_sparsity_of_an_empty_image_is_a_tenth() -> None:
    assert sparsity_loss(image(0.0, 0.0)).item() == pytest.approx(0.1)
    assert sparsity_loss(image(1.0)).item() == pytest.approx(math.sqrt(1.01))


def test_opaque_is_largest_at_one_half_and_flat_at_the_ends() -> None:
    assert opaque_loss(image(0.5)).item() == pytest.approx(math.log(2))
    opacity = image(0.0, 1.0).requires_grad_()
    loss = opaque_loss(opacity)
    assert loss.item() == pytest.approx(-(0.001 * math.log(0.001) + 0.999 * math.log(0.999)), rel=1e-4)
    (gradient,) = torch.autograd.grad(loss, opacity)
    assert not gradient.any()


def test_z_variance_averages_over_solid_rays_alone() -> None:
    loss = z_variance_loss(image(1.0, 100.0, 3.0), image(0.9, 0.4, 0.6))
    assert loss.item() == pytest.approx(2.0)


def test_z_variance_without_solid_rays_is_zero() -> None:
    assert z_variance_loss(image(0.1, 0.2), image(0.1, 0.2)).item() == 0


def test_total_variation_of_a_ramp() -> None:
    x = torch.arange(3.0)[:, None, None, None].expand(3, 4, 5, 2)
    # 2 * 4 * 5 pairs along x, each with 2 channels that differ by one; 60 nodes
    assert total_variation([x]).item() == pytest.approx(80 / 60)
    assert total_variation([x, 2 * x]).item() == pytest.approx(5 * 80 / 60)


def test_total_variation_of_nothing_is_zero() -> None:
    assert total_variation([]).item() == 0
    assert total_variation([torch.ones(3, 3, 3, 4)]).item() == 0


@pytest.mark.parametrize("shape", [(3, 4, 2, 1), (2, 2, 2, 3)])
def test_total_variation_has_the_right_gradient(shape: tuple[int, ...]) -> None:
    grid = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda g: total_variation([g]), (grid,))


def test_image_losses_have_the_right_gradients() -> None:
    opacity = torch.rand(1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    opacity.requires_grad_()
    assert torch.autograd.gradcheck(sparsity_loss, (opacity,))
    assert torch.autograd.gradcheck(opaque_loss, (opacity,))


def test_terms_without_weight_are_not_computed() -> None:
    weights = dict.fromkeys(("orientation", "sparsity", "opaque", "z_variance", "total_variation"), 0.0)
    output, field = render(image(0.9)), Grids(torch.ones(2, 2, 2, 1))
    assert regularization_losses(output, field, weights) == {}  # orientation would miss its normals
    terms = regularization_losses(output, field, weights | {"opaque": 1.0, "total_variation": 2.0})
    assert terms.keys() == {"opaque", "total_variation"}
    assert terms["opaque"] == opaque_loss(output.opacity)  # the weight is applied by the caller
