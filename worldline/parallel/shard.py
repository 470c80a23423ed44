"""What a process holds of a model, and what it forgets between forward and backward: FSDP2, recomputing, compiling.

The order is that of torchtitan's Llama: recomputing inside compiling inside sharding. Models need not know: their
repeated blocks, the members of a `ModuleList`, are handled one by one, and all the rest as one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from worldline.parallel.mesh import Crew

ENTRIES = ("read",)  # names, beside forward, by which a model enters a part of a block from outside it
COSTLY = (  # what selective recomputing keeps
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
)


class Objective(nn.Module):
    """A model together with its loss, so that whatever the loss calls of the model runs inside one forward."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Any], tuple[Tensor, dict[str, Tensor]]]) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.touched: list[nn.Module] = []

    def forward(self, data: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """What `loss` gives."""
        terms, extra = self.loss(self.model, data)
        for module in self.touched:
            terms = _Touch.apply(terms, *module.parameters(recurse=False))  # type: ignore[no-untyped-call]
        return terms, extra


class _Touch(Function):
    """x; parameters get gradients of zero: processes that add up gradients must agree on which there are, whatever
    their packs made use of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return grads[0], *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


def prepare(objective: Objective, crew: Crew, dtype: torch.dtype) -> dict[str, Tensor]:
    """Applies the crew's plan to the model of `objective`, whose weights are fp32; it computes in `dtype` from now on.

    Alone, the weights are rounded to `dtype`. With others they become shards in fp32, gathered in `dtype`, their
    gradients summed in fp32.

    Returns:
        the fp32 weights that an optimizer updates, by name: what this process holds of each. Where the model computes
        with them directly they share its memory.
    """
    model, plan = objective.model, crew.plan
    blocks = list(repeated(model))
    for block in blocks:
        if plan.recompute != "none":
            block.forward = _recomputed(block.forward, plan.recompute)
        if plan.compile:
            block.compile()
    if crew.mesh is None:
        masters = {}
        for name, weight in model.named_parameters():
            # Fused updates read weights, gradients and moments as they lie in memory: all must lie alike.
            same = dtype == torch.float32 and weight.is_contiguous()
            masters[name] = weight.detach() if same else weight.detach().clone(memory_format=torch.contiguous_format)
        model.to(dtype)
        return masters
    for tensor in model.parameters():
        tensor.data = tensor.data.contiguous()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(dtype)
    # Nothing here writes into what a block returned, which is what this advice is about.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    split = partial(fully_shard, mesh=crew.mesh, mp_policy=policy)
    inside = {module for block in blocks for module in block.modules()}
    objective.touched = [module for module in model.modules() if module not in inside]
    for block in blocks:
        for part in block.modules():
            for name in ENTRIES:
                if part is not block and hasattr(part, name):
                    split(part)
                    register_fsdp_forward_method(part, name)
        split(block)
    split(objective)
    return {name: local(parameter.detach()) for name, parameter in model.named_parameters()}


def repeated(model: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists of modules."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from repeated(child)


def _recomputed(forward: Callable[..., Any], how: str) -> Callable[..., Any]:
    again = partial(checkpoint, forward, use_reentrant=False)
    if how == "full":
        return again
    return partial(again, context_fn=partial(create_selective_checkpoint_contexts, _policy))


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in COSTLY else CheckpointPolicy.PREFER_RECOMPUTE


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: its shard, or all of it; it shares the memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, part: Tensor, mesh: DeviceMesh | None = None) -> Tensor:
    """`part`, which belongs to `tensor` as its `local` does, as a whole that knows where its shards lie: on the mesh of
    `tensor`, or on another of the same processes."""
    if not isinstance(tensor, DTensor):
        return part
    return DTensor.from_local(
        part, mesh or tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every process; all must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
