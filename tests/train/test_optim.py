"""AdamW on masters is AdamW, and fp32 masters keep what bf16 weights would lose."""

import torch
from torch import nn

from worldline.parallel.mesh import ParallelPlan, join
from worldline.parallel.shard import Objective, prepare
from worldline.train.optim import Optimizer
from worldline.train.plan import OptimPlan


def optimizer_of(model, plan, dtype=torch.float32):
    return Optimizer(model, prepare(Objective(model, None), join(ParallelPlan()), dtype), plan)


def test_equals_the_reference_adamw_with_clipping():
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    theirs = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    theirs.load_state_dict(ours.state_dict())
    plan = OptimPlan(weight_decay=0.1, clip=0.05)
    optimizer = optimizer_of(ours, plan)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(plan.beta1, plan.beta2), eps=plan.eps)
    for _ in range(20):
        x = torch.randn(11, 5)
        ours(x).square().sum().backward()
        theirs(x).square().sum().backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.05)
        optimizer.gather()
        torch.testing.assert_close(torch.tensor(optimizer.norm()), norm.detach(), rtol=1e-5, atol=0)
        optimizer.step(1e-2, optimizer.norm())
        reference.step()
        reference.zero_grad()
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def test_masters_add_up_updates_too_small_for_bf16():
    model = nn.Linear(4, 4)
    nn.init.ones_(model.weight)
    optimizer = optimizer_of(model, OptimPlan(weight_decay=0.0, clip=0.0), torch.bfloat16)
    step = 1e-3  # below half of bf16's spacing at 1, which is 1/256: the weights alone would never move
    for _ in range(50):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.gather()
        optimizer.step(step, 1.0)
    assert float(model.weight.detach().float().max()) < 0.96


def test_a_parameter_without_gradient_counts_as_zero():
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2)})
    optimizer = optimizer_of(model, OptimPlan(weight_decay=0.0))
    before = model["idle"].weight.detach().clone()
    for _ in range(2):
        model["used"](torch.ones(1, 2)).sum().backward()
        optimizer.gather()
        optimizer.step(0.1, optimizer.norm())
    assert torch.equal(before, model["idle"].weight)


def test_gradients_of_several_passes_add_up_in_fp32():
    model = nn.Linear(1, 1, bias=False)
    optimizer = optimizer_of(model, OptimPlan(), torch.bfloat16)
    for grad in (1.0, 2.0**-10, 2.0**-10):  # in bf16 the sum would stay at 1
        model.weight.grad = torch.full((1, 1), grad, dtype=torch.bfloat16)
        optimizer.gather()
    assert optimizer.norm() == 1 + 2.0**-9


def test_weights_that_lie_otherwise_in_memory_are_updated_in_place():
    torch.manual_seed(0)
    model = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
    theirs = nn.Conv2d(3, 5, 3)
    theirs.load_state_dict(model.state_dict())
    optimizer = optimizer_of(model, OptimPlan(weight_decay=0.0, clip=0.0))
    reference = torch.optim.Adam(theirs.parameters(), lr=1e-2, betas=(0.9, 0.99))
    for _ in range(3):
        x = torch.randn(2, 3, 8, 8)
        for net in (model, theirs):
            net(x).square().sum().backward()
        optimizer.gather()
        optimizer.step(1e-2, optimizer.norm())
        reference.step()
        reference.zero_grad()
    torch.testing.assert_close(model.weight, theirs.weight, rtol=1e-5, atol=1e-6)
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
