"""What a network of the user's must be, tried on three images before anything is trained with it."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from drl_dist.common.errors import UserError, described
from drl_dist.energy.network import EnergyNetwork

_STIR = 0.02
"""Standard deviation of what is added to the weights of a copy, so that layers which begin at zero hide nothing."""
_TOLERANCE = 1e-3
"""Relative difference that rounding may make between an image alone and beside others."""


def check_network(
    network: EnergyNetwork, name: str, num_levels: int, *, is_matched: bool, condition_size: int = 0
) -> bool:
    """Return if a network can be trained and sampled from.

    Args:
        network: float32, on the CPU.
        name: that the config has for it.
        num_levels: T.
        is_matched: an objective compares image gradients, so that second derivatives are needed.
        condition_size: numbers of a label; 0 for a network without labels.

    Returns:
        Whether the image gradient was seen to depend on every parameter; see
        `EnergyNetwork.gradient_uses_all_parameters`.

    Raises:
        UserError: it cannot.
    """
    try:
        return _check(network, name, num_levels, is_matched, condition_size)
    except UserError:
        raise
    except Exception as error:
        # Whatever a module of the user's raises, it is that module's fault.
        shape = (3, *network.image_shape)
        raise _refusal(
            name,
            f"{described(error)} at images of shape {shape}",
            "forward(y, t, condition) of images, levels and labels"
            if condition_size
            else "forward(y, t) of images and levels",
            "correct the network or model.options",
        ) from error


def _check(network: EnergyNetwork, name: str, num_levels: int, is_matched: bool, condition_size: int) -> bool:
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise _refusal(name, "no parameters", "some that can be trained", "register layers in __init__")
    if normalised := [place for place, module in network.named_modules() if isinstance(module, _BatchNorm)]:
        raise _refusal(
            name,
            f"batch normalisation in {_place(normalised[0])}",
            "no statistics of the batch, which mix the images of different noise levels",
            "use nn.GroupNorm or nn.LayerNorm",
        )
    if tied := _tied(network):
        raise _refusal(name, f"{' and '.join(tied)} in one tensor", "tensors of their own", "copy one of the two")
    stirred = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in stirred.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=_STIR)
    level = torch.tensor([0, num_levels - 1, num_levels // 2])
    y = torch.randn(3, *network.image_shape, generator=generator).requires_grad_()
    given = {"condition": torch.randn(3, condition_size, generator=generator)} if condition_size else {}
    before = {place: buffer.clone() for place, buffer in stirred.named_buffers()}
    raw = stirred(y, level, **given)
    _check_output(raw, name)
    if changed := [place for place, value in stirred.named_buffers() if not torch.equal(value, before[place])]:
        raise _refusal(
            name,
            f"a forward that changes the buffer {_place(changed[0])}",
            "a function of the image, the level and the parameters",
            "leave running statistics out",
        )
    if not torch.equal(stirred(y, level, **given), raw):
        raise _refusal(
            name, "another output for the same images", "the same each time", "leave out dropout and other noise"
        )
    each = [slice(i, i + 1) for i in range(3)]
    alone = torch.cat(
        [stirred(y[one], level[one], **{name: values[one] for name, values in given.items()}) for one in each]
    )
    difference, size = ((alone - raw).detach().abs().max(), raw.detach().abs().max())
    if difference > _TOLERANCE * (1e-3 + size):
        raise _refusal(
            name,
            "another output for an image beside others than alone",
            "an output that depends on its own image",
            "normalise over the channels or pixels of an image, as nn.GroupNorm does",
        )
    return _check_gradients(stirred, name, y, raw, is_matched)


def _check_output(raw: object, name: str) -> None:
    if not isinstance(raw, Tensor) or raw.shape != (3,) or not raw.is_floating_point():
        got = f"{raw.dtype} of shape {tuple(raw.shape)}" if isinstance(raw, Tensor) else f"a {type(raw).__name__}"
        raise _refusal(
            name, f"{got} for 3 images", "one floating-point number for each, of shape (3,)", "sum over the rest"
        )
    if not bool(raw.isfinite().all()):
        raise _refusal(name, "an output that is not finite", "finite numbers", "look at its initial weights")


def _check_gradients(network: EnergyNetwork, name: str, y: Tensor, raw: Tensor, is_matched: bool) -> bool:
    expected = "an output that depends on the image by operations that torch differentiates"
    remedy = "leave out detach(), no_grad() and rounding"
    gradient: Tensor | None = None
    if raw.requires_grad:
        (gradient,) = torch.autograd.grad(raw.sum(), y, create_graph=True, allow_unused=True)
    if gradient is None or not bool(gradient.any()):
        raise _refusal(name, "no gradient with respect to the image", expected, remedy)
    leaves = {id(leaf) for leaf in _leaves(raw)} - {id(y)}
    parameters = {place: one for place, one in network.named_parameters() if one.requires_grad}
    if leaves - {id(one) for one in network.parameters()}:
        raise _refusal(
            name,
            "a weight that is not among its parameters",
            "layers that parameters() lists",
            "keep lists of layers in nn.ModuleList, and tensors in nn.Parameter",
        )
    if unused := [place for place, one in parameters.items() if id(one) not in leaves]:
        raise _refusal(
            name,
            f"the parameter {_place(unused[0])} without a part in the output",
            "only parameters that the output depends on",
            "leave unused layers out",
        )
    if not is_matched:
        return False
    squares, weights = gradient.square().sum(), list(parameters.values())
    # Of a gradient that hangs on nothing, not even None is to be had.
    moved: list[Tensor | None] = [None]
    if squares.requires_grad:
        moved = list(torch.autograd.grad(squares, weights, allow_unused=True))
    if all(one is None for one in moved):
        raise _refusal(
            name,
            "an image gradient that does not depend on the parameters",
            "one that does, for objectives that compare gradients",
            "use smooth activations such as nn.SiLU",
        )
    return all(one is not None for one in moved)


def _leaves(output: Tensor) -> Iterator[Tensor]:
    """The leaves of the graph that an output hangs on."""
    seen, todo = set[object](), [output.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(variable := getattr(node, "variable", None), Tensor):
            yield variable
        todo.extend(following for following, _ in node.next_functions)


def _tied(network: nn.Module) -> tuple[str, str] | None:
    """Two names of one tensor, which files of tensors cannot hold."""
    seen: dict[int, str] = {}
    for name, value in network.state_dict(keep_vars=True).items():
        if value.numel() and (other := seen.setdefault(value.data_ptr(), name)) != name:
            return _place(other), _place(name)
    return None


def _place(name: str) -> str:
    return name.removeprefix("module.") or "the network"


def _refusal(name: str, got: str, expected: str, remedy: str) -> UserError:
    return UserError(f"network {name}", got=got, expected=expected, remedy=remedy)
