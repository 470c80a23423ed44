"""Muon on whole matrices is torch's; on shards it is the same; what is no hidden matrix stays with AdamW."""

import pytest
import torch
from torch import nn

from worldline.errors import UserError
from worldline.parallel.mesh import ParallelPlan, join
from worldline.parallel.shard import Objective, prepare
from worldline.train.muon import hidden, orthogonal
from worldline.train.optim import Optimizer
from worldline.train.plan import OptimPlan


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 24), nn.LayerNorm(24), nn.Linear(24, 8)) for _ in "ab")
        self.conv = nn.ModuleList([nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=4)])
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def optimizer_of(model, plan, dtype=torch.float32):
    return Optimizer(model, prepare(Objective(model, None), join(ParallelPlan()), torch.float32), plan, dtype)


def test_matrices_inside_blocks_are_hidden_and_nothing_else_is():
    assert hidden(Net()) == [f"blocks.{i}.{j}.weight" for i in (0, 1) for j in (0, 2)] + ["conv.0.weight"]
    with pytest.raises(UserError, match=r"optim\.kind: muon is for matrices in repeated blocks"):
        optimizer_of(nn.Linear(3, 3), OptimPlan("muon"))
    with pytest.raises(UserError, match=r"optim\.kind: 'sgd' is unknown; one of adamw, muon"):
        OptimPlan("sgd")


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_an_update_keeps_the_directions_and_makes_their_strengths_alike(shape):
    torch.manual_seed(1)
    matrix = torch.randn(shape) * torch.logspace(0, -2, shape[1])
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.mT @ orthogonal(matrix) @ vh.mT  # diagonal, near one
    assert float((inner - torch.diag(inner.diag())).abs().max()) < 1e-4
    assert 0.6 < float(inner.diag().min()) <= float(inner.diag().max()) < 1.3
    assert not orthogonal(torch.zeros(shape)).any()


def test_equals_torchs_muon_on_whole_matrices_and_adamw_on_the_rest():
    torch.manual_seed(0)
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict())
    plan = OptimPlan("muon", weight_decay=0.1, clip=0.0)
    optimizer = optimizer_of(ours, plan, torch.bfloat16)
    matrices = [p for name, p in theirs.named_parameters() if name in hidden(theirs) and p.ndim == 2]
    muon = torch.optim.Muon(matrices, 1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    rest = [theirs.stem.weight, theirs.head.weight]
    adamw = torch.optim.AdamW(rest, 1e-2, (plan.beta1, plan.beta2), plan.eps, weight_decay=0.1)
    for _ in range(5):
        for net in (ours, theirs):
            for parameter in net.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=torch.manual_seed(parameter.numel()))
        optimizer.gather()
        optimizer.step(1e-2, 1.0)
        muon.step()
        adamw.step()
    for name in (*hidden(ours)[:4], "stem.weight", "head.weight"):
        torch.testing.assert_close(ours.get_parameter(name), theirs.get_parameter(name), rtol=1e-6, atol=1e-7)


def test_goes_on_from_its_moments_to_the_same_bits():
    torch.manual_seed(0)
    whole, cut = Net(), Net()
    cut.load_state_dict(whole.state_dict())
    plan = OptimPlan("muon")

    def run(model, optimizer, steps):
        for step in steps:
            model(torch.randn(7, 6, generator=torch.manual_seed(step))).square().mean().backward()
            optimizer.gather()
            optimizer.step(1e-2, optimizer.norm())

    run(whole, optimizer_of(whole, plan), range(6))
    first = optimizer_of(cut, plan)
    run(cut, first, range(3))
    second = optimizer_of(cut, plan)
    assert {name.partition(".")[0] for name in first.moments()} == {"first", "second", "momentum"}
    for name, moment in second.moments().items():
        moment.copy_(first.moments()[name])
    second.resume(3)
    run(cut, second, range(3, 6))
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, cut.get_parameter(name)), name
